"""How the batches of an epoch are put together, and which rows of them a process takes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from edgekd.augment import uniforms
from edgekd.errors import UsageError

__all__ = ["ALL", "Part", "Sampling", "Share", "check_sampling", "chunk_of", "chunks_in", "parts_of"]

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


@dataclass(frozen=True)
class Share:
    """Which of several processes this is: it takes every `count`-th row of a batch, from row `index` on.

    Args:
        index: of this process, in [0, count).
        count: processes, at least 1.
    """

    index: int = 0
    count: int = 1

    def rows(self, total: int) -> Tensor:
        """This process's rows of `total`; all of them where there are too few to go round."""
        if total < self.count:
            return torch.arange(total)
        return torch.arange(self.index, total, self.count)


ALL = Share()
"""The whole of every batch: the only process there is."""


@dataclass(frozen=True)
class Part:
    """Samples of a batch that are changed together: mixup takes partners from among them.

    Args:
        ids: shape (P,).
        mixed_as: samples whose mixup draws are taken; None for their own.
        second_view: moved and cut by other draws.
    """

    ids: Tensor
    mixed_as: Tensor | None = None
    second_view: bool = False


def chunk_of(sampling: Sampling, batch_size: int) -> int:
    """New samples in a batch."""
    return batch_size if sampling == "plain" else batch_size // 2


def chunks_in(sampling: Sampling, samples: int, chunk: int, *, shuffle: bool, drop_last: bool) -> int:
    """Batches in an epoch of so many samples."""
    full, rest = divmod(samples, chunk)
    repeats = sampling == "repeat_half"
    lone = rest == 1 and full > 0 and shuffle and not repeats
    chunks = full + (rest > 0 and not lone and not drop_last)
    if not repeats:
        return chunks
    # neighbours overlap; half a batch that has no neighbour is a batch of its own
    return chunks - 1 if chunks > 1 or drop_last else chunks


def parts_of(
    sampling: Sampling, order: Tensor, chunk: int, labels: Tensor, *, classes: int, seed: int, epoch: int
) -> list[tuple[Part, ...]]:
    """What each batch of an epoch is made of.

    Args:
        sampling: how.
        order: sample ids in the epoch's order, int64, shape (N,).
        chunk: new samples in a batch.
        labels: class indices, shape (N,).
        classes: K.
        seed: of the draw of partners.
        epoch: 0-based.
    """
    chunks = torch.split(order, chunk)
    match sampling:
        case "plain":
            return [(Part(ids),) for ids in chunks]
        case "repeat_half":
            parts = [Part(ids) for ids in chunks]
            return list(pairwise(parts)) if len(parts) > 1 else [(parts[0],)]
        case "same_class":
            partner = _partners(labels, classes=classes, seed=seed, epoch=epoch)
            return [(Part(ids), Part(partner[ids], mixed_as=ids)) for ids in chunks]
        case "two_views":
            return [(Part(ids), Part(ids, second_view=True)) for ids in chunks]


def check_sampling(sampling: Sampling, batch_size: int, labels: Tensor) -> None:
    """Refuse batches that cannot be put together so.

    Raises:
        UsageError: a batch that cannot be halved, or `same_class` for samples without labels.
    """
    if sampling != "plain" and batch_size % 2:
        raise UsageError(
            f"batch_size must be even for batches of two halves (sampling '{sampling}'), got {batch_size}."
            " Set train.batch_size to an even number."
        )
    if sampling == "same_class" and bool((labels < 0).any()):
        raise UsageError(
            "Batches of samples of the same class (sampling 'same_class') need labels, but the training split has"
            " samples without. Label them, or use another method."
        )


def _partners(labels: Tensor, *, classes: int, seed: int, epoch: int) -> Tensor:
    """Another sample of the same class for every sample, itself where there is no other; int64, shape (N,)."""
    ids = torch.arange(len(labels))
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels, minlength=classes)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(ids)
    place[by_class] = ids - first[labels[by_class]]
    # 1 to n - 1 places further round a class of n: anybody but the sample itself
    drawn = uniforms(ids, seed=seed, epoch=epoch, stream="class partner")
    further = 1 + (drawn * (counts[labels] - 1)).floor().to(torch.int64)
    return by_class[first[labels] + (place + further) % counts[labels]]
