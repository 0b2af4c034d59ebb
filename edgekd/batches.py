"""From a split to the batches that a model takes: order, augmentation, normalisation, device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.augment import Augment, uniforms
from edgekd.datasets._base import InMemorySamples, Samples
from edgekd.errors import DataError, UsageError
from edgekd.recipe import AugmentSettings
from edgekd.spec import Preprocessing

__all__ = ["Batches", "EvaluationBatch", "RawBatch", "Sampling", "calibration_ids", "evaluation_batches"]

Sampling = Literal["plain", "repeat_half", "same_class", "two_views"]
"""How batches are put together.

plain: every sample once an epoch, in a random order. The others fill a batch from two halves, so that an epoch has
about twice as many batches of the same size:

repeat_half: the order is cut into halves of batches, and each batch is two neighbours of them: its first half is the
second half of the batch before it, changed and mixed in the same way. The first batch of an epoch starts with the
first half, which comes once like the last one; nothing is repeated across epochs.
same_class: the second half are partners, row i + B/2 for row i: another sample of its class, drawn anew each epoch;
the sample itself where its class has no other. Mixup gives both rows one ratio, and mixes the partner with the
partner of the row that row i is mixed with: their labels are equal.
two_views: the second half are the first half's samples, moved and cut by other draws; mixup mixes both alike.
"""

_PREFETCH = 2

C = TypeVar("C")
T = TypeVar("T")


@dataclass(frozen=True)
class RawBatch:
    """One training batch, before the training loop adds epoch and progress.

    Args:
        inputs: augmented and normalised, float32, shape (B, C, H, W).
        labels: class probabilities, smoothed and mixed, float32, shape (B, K); zeros for a sample without label.
        ids: indices of the samples in the split, int64, shape (B,), on the CPU.
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor


class EvaluationBatch(NamedTuple):
    """One batch in the split's own order, nothing random in it.

    Args:
        inputs: normalised, float32, shape (B, C, H, W).
        labels: class indices, int64, shape (B,).
        ids: indices of the samples in the split, int64, shape (B,), on the CPU.
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor


@dataclass(frozen=True)
class _Part:
    """Samples of a batch that are changed together: mixup takes partners from among them.

    Args:
        ids: shape (P,).
        mixed_as: samples whose mixup draws are taken; None for their own.
        second_view: moved and cut by other draws.
    """

    ids: Tensor
    mixed_as: Tensor | None = None
    second_view: bool = False


class Batches:
    """The batches of each epoch; order and augmentation depend on the seed and the epoch alone.

    A training run that stops after an epoch goes on with the next one exactly as if it had not stopped. A single
    sample that is left for the last batch, or for one half of it, is left out when shuffling, since batch normalisation
    cannot normalise one sample; the next epoch's order leaves out another. With `repeat_half` it is never alone.

    Args:
        samples: the training split; a label of -1 says that a sample has none.
        batch_size: samples per batch; the last one has the rest.
        classes: K.
        preprocessing: normalises; its mean fills cut-out pixels.
        seed: of order and augmentation.
        augment: random changes; None for none.
        shuffle: a new order each epoch, or the split's own.
        device: where inputs and labels go.
        label_smoothing: share of each label spread evenly over all classes, in [0, 1).
        drop_last: leave out a last batch that is not full.
        prefetch: batches prepared ahead by a background thread; 0 prepares each when it is asked for. None is 0 for
            samples in memory, where a thread gains nothing, and 2 for others, where it hides the decoding.
        sampling: how batches are put together; see `Sampling`.

    Raises:
        DataError: no samples, or a label that is neither in [0, classes) nor -1.
        UsageError: nothing is left after `drop_last`, a batch that cannot be halved, or `same_class` for samples
            without labels.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        classes: int,
        preprocessing: Preprocessing,
        seed: int,
        augment: AugmentSettings | None = None,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
        label_smoothing: float = 0.0,
        drop_last: bool = False,
        prefetch: int | None = None,
        sampling: Sampling = "plain",
    ) -> None:
        _check_labels(samples, classes)
        _check_sampling(samples, sampling, batch_size)
        self.samples = samples
        self.batch_size = batch_size
        self.classes = classes
        self.preprocessing = preprocessing
        self.seed = seed
        self.augment = None if augment is None else Augment(augment, seed)
        self.second_view = None if augment is None else Augment(augment, seed, view=1)
        self.shuffle = shuffle
        self.device = torch.device(device)
        self.label_smoothing = label_smoothing
        self.drop_last = drop_last
        self.prefetch = _ahead(samples, prefetch)
        self.sampling = sampling
        if len(self) == 0:
            raise UsageError(
                f"{len(samples)} training samples do not fill one batch of {batch_size}. Lower batch_size, or keep the"
                " last batch."
            )

    def __len__(self) -> int:
        """Batches in an epoch: the same in every epoch."""
        full, rest = divmod(len(self.samples), self._chunk)
        repeats = self.sampling == "repeat_half"
        lone = rest == 1 and full > 0 and self.shuffle and not repeats
        chunks = full + (rest > 0 and not lone and not self.drop_last)
        if not repeats:
            return chunks
        # neighbours overlap; half a batch that has no neighbour is a batch of its own
        return chunks - 1 if chunks > 1 or self.drop_last else chunks

    def order(self, epoch: int) -> Tensor:
        """Sample ids in the order of this epoch, int64, shape (N,)."""
        ids = torch.arange(len(self.samples))
        if not self.shuffle:
            return ids
        return torch.argsort(uniforms(ids, seed=self.seed, epoch=epoch, stream="order"), stable=True)

    def epoch(self, epoch: int) -> Iterator[RawBatch]:
        """The batches of one epoch, counted from 0.

        Raises:
            DataError: a file that is read at this moment is damaged.
        """
        return _ahead_of(self._plan(epoch), lambda parts: self._batch(parts, epoch), self.prefetch)

    @property
    def _chunk(self) -> int:
        """New samples in a batch."""
        return self.batch_size if self.sampling == "plain" else self.batch_size // 2

    def _plan(self, epoch: int) -> list[tuple[_Part, ...]]:
        """What each batch of an epoch is made of."""
        chunks = torch.split(self.order(epoch), self._chunk)
        plan: list[tuple[_Part, ...]]
        match self.sampling:
            case "plain":
                plan = [(_Part(ids),) for ids in chunks]
            case "repeat_half":
                parts = [_Part(ids) for ids in chunks]
                plan = list(pairwise(parts)) if len(parts) > 1 else [(parts[0],)]
            case "same_class":
                partner = self._partners(epoch)
                plan = [(_Part(ids), _Part(partner[ids], mixed_as=ids)) for ids in chunks]
            case "two_views":
                plan = [(_Part(ids), _Part(ids, second_view=True)) for ids in chunks]
        return plan[: len(self)]

    def _partners(self, epoch: int) -> Tensor:
        """Another sample of the same class for every sample, itself where there is no other; int64, shape (N,)."""
        labels = self.samples.labels
        ids = torch.arange(len(labels))
        by_class = torch.argsort(labels, stable=True)
        counts = torch.bincount(labels, minlength=self.classes)
        first = counts.cumsum(0) - counts
        place = torch.empty_like(ids)
        place[by_class] = ids - first[labels[by_class]]
        # 1 to n - 1 places further round a class of n: anybody but the sample itself
        drawn = uniforms(ids, seed=self.seed, epoch=epoch, stream="class partner")
        further = 1 + (drawn * (counts[labels] - 1)).floor().to(torch.int64)
        return by_class[first[labels] + (place + further) % counts[labels]]

    def _batch(self, parts: Sequence[_Part], epoch: int) -> RawBatch:
        made = [self._changed(part, epoch) for part in parts]
        if len(made) == 1:
            return made[0]
        return RawBatch(
            torch.cat([one.inputs for one in made]),
            torch.cat([one.labels for one in made]),
            torch.cat([one.ids for one in made]),
        )

    def _changed(self, part: _Part, epoch: int) -> RawBatch:
        ids = part.ids
        images = self.samples.images(ids).to(self.device)
        own = self.samples.labels[ids]
        hard = F.one_hot(own.clamp_min(0), self.classes).to(self.device, torch.float32)
        labels = hard * (1 - self.label_smoothing) + self.label_smoothing / self.classes
        labels = labels * (own >= 0).to(self.device)[:, None]
        augment = self.second_view if part.second_view else self.augment
        if augment is not None:
            fill = self.preprocessing.mean
            images, labels = augment(images, labels, ids, epoch=epoch, fill=fill, mixed_as=part.mixed_as)
        return RawBatch(self.preprocessing.normalise(images), labels, ids)


def evaluation_batches(
    samples: Samples,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    ids: Tensor | None = None,
    prefetch: int | None = None,
) -> Iterator[EvaluationBatch]:
    """Batches for evaluation and calibration: every sample once, in order, not augmented.

    Args:
        samples: a split.
        preprocessing: normalises.
        batch_size: samples per batch; the last one has the rest.
        device: where inputs and labels go.
        ids: only these samples, in this order; None for all.
        prefetch: see `Batches`.
    """
    chosen = torch.arange(len(samples)) if ids is None else ids

    def batch(part: Tensor) -> EvaluationBatch:
        inputs = preprocessing.normalise(samples.images(part).to(device))
        return EvaluationBatch(inputs, samples.labels[part].to(device), part)

    return _ahead_of(torch.split(chosen, batch_size), batch, _ahead(samples, prefetch))


def calibration_ids(samples: Samples, count: int, *, seed: int) -> Tensor:
    """Which samples to calibrate on: a random choice without replacement, in a random order.

    Args:
        samples: the training split; the test split never calibrates.
        count: how many; all if there are fewer.
        seed: of choice and order. A larger count with the same seed only appends.

    Returns:
        int64, shape (min(count, N),).
    """
    ids = torch.arange(len(samples))
    return torch.argsort(uniforms(ids, seed=seed, epoch=0, stream="calibration"), stable=True)[:count]


def _check_labels(samples: Samples, classes: int) -> None:
    if len(samples) == 0:
        raise DataError("the training split has no samples.")
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < -1 or high >= classes:
        raise DataError(
            f"labels must be in [0, {classes - 1}] for {classes} classes, or -1 where a sample has none, got {low} to"
            f" {high}."
        )


def _check_sampling(samples: Samples, sampling: Sampling, batch_size: int) -> None:
    if sampling != "plain" and batch_size % 2:
        raise UsageError(
            f"batch_size must be even for batches of two halves (sampling '{sampling}'), got {batch_size}."
            " Set train.batch_size to an even number."
        )
    if sampling == "same_class" and bool((samples.labels < 0).any()):
        raise UsageError(
            "Batches of samples of the same class (sampling 'same_class') need labels, but the training split has"
            " samples without. Label them, or use another method."
        )


def _ahead(samples: Samples, prefetch: int | None) -> int:
    if prefetch is not None:
        return prefetch
    return 0 if isinstance(samples, InMemorySamples) else _PREFETCH


def _ahead_of(chunks: Sequence[C], make: Callable[[C], T], ahead: int) -> Iterator[T]:
    """`map(make, chunks)`, with up to `ahead` results made beforehand by one background thread."""
    if ahead == 0:
        yield from map(make, chunks)
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgekd-batches") as worker:
        try:
            for chunk in chunks:
                pending.append(worker.submit(make, chunk))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # also reached when the consumer stops early: nothing more is prepared for it
            for future in pending:
                future.cancel()
