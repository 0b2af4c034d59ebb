"""From a split to the batches that a model takes: order, augmentation, normalisation, device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd._background import background
from edgekd._sampling import ALL, Part, Sampling, Share, check_sampling, chunk_of, chunks_in, parts_of
from edgekd.augment import Augment, uniforms
from edgekd.datasets._base import InMemorySamples, Samples
from edgekd.errors import DataError, UsageError
from edgekd.recipe import AugmentSettings
from edgekd.spec import Preprocessing

__all__ = ["Batches", "EvaluationBatch", "RawBatch", "Sampling", "Share", "calibration_ids", "evaluation_batches"]

_PREFETCH = 2

C = TypeVar("C")
T = TypeVar("T")


@dataclass(frozen=True)
class RawBatch:
    """One training batch, or a process's share of it, before the training loop adds epoch and progress.

    Args:
        inputs: augmented and normalised, float32, shape (B, C, H, W).
        labels: class probabilities, smoothed and mixed, float32, shape (B, K); zeros for a sample without label.
        ids: indices of the samples in the split, int64, shape (B,), on the CPU.
        total: rows of the whole batch, over all processes.
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    total: int


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
        views: after so many epochs their order and their changes repeat; None for never.

    Raises:
        DataError: no samples, or a label that is neither in [0, classes) nor -1.
        UsageError: nothing is left after `drop_last`, or batches that cannot be put together as `sampling` says.
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
        views: int | None = None,
    ) -> None:
        _check_labels(samples, classes)
        check_sampling(sampling, batch_size, samples.labels)
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
        self.prefetch = _ahead(samples, prefetch, self.device)
        self.sampling = sampling
        self.views = views
        if len(self) == 0:
            raise UsageError(
                f"{len(samples)} training samples do not fill one batch of {batch_size}. Lower batch_size, or keep the"
                " last batch."
            )

    def __len__(self) -> int:
        """Batches in an epoch: the same in every epoch."""
        shape = {"shuffle": self.shuffle, "drop_last": self.drop_last}
        return chunks_in(self.sampling, len(self.samples), chunk_of(self.sampling, self.batch_size), **shape)

    def order(self, epoch: int) -> Tensor:
        """Sample ids in the order of this epoch, int64, shape (N,)."""
        ids = torch.arange(len(self.samples))
        if not self.shuffle:
            return ids
        return torch.argsort(uniforms(ids, seed=self.seed, epoch=self.view(epoch), stream="order"), stable=True)

    def view(self, epoch: int) -> int:
        """The epoch whose order and changes this one has: itself, unless `views` says that they repeat."""
        return epoch if self.views is None else epoch % self.views

    def epoch(self, epoch: int, *, start: int = 0, share: Share = ALL) -> Iterator[RawBatch]:
        """The batches of one epoch, counted from 0.

        Args:
            epoch: 0-based.
            start: the first batch that is wanted; those before it cost nothing.
            share: the rows that are wanted: each is what it is in the whole batch, mixup included.

        Raises:
            DataError: a file that is read at this moment is damaged.
        """
        view = self.view(epoch)
        plan = parts_of(
            self.sampling,
            self.order(epoch),
            chunk_of(self.sampling, self.batch_size),
            self.samples.labels,
            classes=self.classes,
            seed=self.seed,
            epoch=view,
        )
        return _ahead_of(plan[start : len(self)], lambda parts: self._batch(parts, view, share), self.prefetch)

    def _batch(self, parts: Sequence[Part], view: int, share: Share) -> RawBatch:
        made = [self._changed(part, view, share) for part in parts]
        total = sum(len(part.ids) for part in parts)
        inputs, labels, ids = (column[0] if len(made) == 1 else torch.cat(column) for column in zip(*made, strict=True))
        return RawBatch(inputs, labels, ids, total)

    def _changed(self, part: Part, view: int, share: Share) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, labels and ids of this process's rows of a part."""
        augment = self.second_view if part.second_view else self.augment
        rows = share.rows(len(part.ids))
        mixes = augment is not None and augment.settings.mixup > 0
        if augment is None or not mixes:
            ids = part.ids[rows]
            images, labels = self._plain(ids)
            if augment is not None:
                images = augment.changed(images, ids, epoch=view, fill=self.preprocessing.mean)
            return self.preprocessing.normalise(images), labels, ids
        mixed_as = part.ids if part.mixed_as is None else part.mixed_as
        # partners are among the whole part, so some rows of other processes are needed too
        partner = augment.partners(mixed_as, epoch=view)
        needed, place = torch.unique(torch.cat([rows, partner[rows]]), return_inverse=True)
        images, labels = self._plain(part.ids[needed])
        images = augment.changed(images, part.ids[needed], epoch=view, fill=self.preprocessing.mean)
        own, other = place[: len(rows)], place[len(rows) :]
        images, labels = augment.mixed((images, labels), mixed_as[rows], own=own, other=other, epoch=view)
        return self.preprocessing.normalise(images), labels, part.ids[rows]

    def _plain(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels as they are, on the device."""
        images = self.samples.images(ids)
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        own = self.samples.labels[ids]
        hard = F.one_hot(own.clamp_min(0), self.classes).to(self.device, torch.float32)
        labels = hard * (1 - self.label_smoothing) + self.label_smoothing / self.classes
        return images, labels * (own >= 0).to(self.device)[:, None]


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

    return _ahead_of(torch.split(chosen, batch_size), batch, _ahead(samples, prefetch, torch.device(device)))


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


def _ahead(samples: Samples, prefetch: int | None, device: torch.device) -> int:
    if prefetch is not None:
        return prefetch
    # on an accelerator the thread hides copying and changing, in memory or not
    return 0 if isinstance(samples, InMemorySamples) and device.type == "cpu" else _PREFETCH


def _ahead_of(chunks: Sequence[C], make: Callable[[C], T], ahead: int) -> Iterator[T]:
    """`map(make, chunks)`, with up to `ahead` results made beforehand by one background thread."""
    if ahead == 0:
        yield from map(make, chunks)
        return
    pending: deque[Future[T]] = deque()
    with background("batches") as worker:
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
