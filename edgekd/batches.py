"""From a split to the batches that a model takes: order, augmentation, normalisation, device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.augment import Augment, uniforms
from edgekd.datasets._base import InMemorySamples, Samples
from edgekd.errors import DataError, UsageError
from edgekd.recipe import AugmentSettings
from edgekd.spec import Preprocessing

__all__ = ["Batches", "EvaluationBatch", "RawBatch", "calibration_ids", "evaluation_batches"]

_PREFETCH = 2

T = TypeVar("T")


@dataclass(frozen=True)
class RawBatch:
    """One training batch, before the training loop adds epoch and progress.

    Args:
        inputs: augmented and normalised, float32, shape (B, C, H, W).
        labels: class probabilities, smoothed and mixed, float32, shape (B, K).
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


class Batches:
    """The batches of each epoch; order and augmentation depend on the seed and the epoch alone.

    A training run that stops after an epoch goes on with the next one exactly as if it had not stopped. A last batch
    of a single sample is left out when shuffling, since batch normalisation cannot normalise one sample; the next
    epoch's order leaves out another.

    Args:
        samples: the training split.
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

    Raises:
        DataError: no samples, or a label that is not in [0, classes).
        UsageError: nothing is left after `drop_last`.
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
    ) -> None:
        _check_labels(samples, classes)
        self.samples = samples
        self.batch_size = batch_size
        self.classes = classes
        self.preprocessing = preprocessing
        self.seed = seed
        self.augment = None if augment is None else Augment(augment, seed)
        self.shuffle = shuffle
        self.device = torch.device(device)
        self.label_smoothing = label_smoothing
        self.drop_last = drop_last
        self.prefetch = _ahead(samples, prefetch)
        if len(self) == 0:
            raise UsageError(
                f"{len(samples)} training samples do not fill one batch of {batch_size}. Lower batch_size, or keep the"
                " last batch."
            )

    def __len__(self) -> int:
        """Batches in an epoch: the same in every epoch."""
        full, rest = divmod(len(self.samples), self.batch_size)
        lone = rest == 1 and full > 0 and self.shuffle
        return full + (rest > 0 and not lone and not self.drop_last)

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
        chunks = torch.split(self.order(epoch), self.batch_size)[: len(self)]
        return _ahead_of(chunks, lambda ids: self._batch(ids, epoch), self.prefetch)

    def _batch(self, ids: Tensor, epoch: int) -> RawBatch:
        images = self.samples.images(ids).to(self.device)
        hard = F.one_hot(self.samples.labels[ids], self.classes).to(self.device, torch.float32)
        labels = hard * (1 - self.label_smoothing) + self.label_smoothing / self.classes
        if self.augment is not None:
            images, labels = self.augment(images, labels, ids, epoch=epoch, fill=self.preprocessing.mean)
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
    if low < 0 or high >= classes:
        raise DataError(f"labels must be in [0, {classes - 1}] for {classes} classes, got {low} to {high}.")


def _ahead(samples: Samples, prefetch: int | None) -> int:
    if prefetch is not None:
        return prefetch
    return 0 if isinstance(samples, InMemorySamples) else _PREFETCH


def _ahead_of(chunks: Sequence[Tensor], make: Callable[[Tensor], T], ahead: int) -> Iterator[T]:
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
