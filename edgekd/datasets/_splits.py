"""Deterministic, stratified splits of sample indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError

__all__ = ["Indices", "check_class_counts", "limited", "split_indices", "split_test"]

Indices = NDArray[np.int64]

# The test split never depends on the recipe's seed: models of different seeds (a teacher, its students) must
# be judged on the same samples, and none of them may have trained on them.
_TEST_SEED = 20_240_229


def split_indices(labels: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split sample indices into (rest, chosen), class by class, the same for the same seed.

    Args:
        labels: class of each sample, shape (N,).
        fraction: share of every class that is chosen, in (0, 1); at least one sample of each class
            that has two or more, never all of them.
        seed: of the shuffle within a class.

    Returns:
        Two sorted index arrays that together hold every sample once.
    """
    chosen = [np.empty(0, dtype=np.int64)]
    for members in _shuffled_members(labels, seed):
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        chosen.append(members[:count])
    picked = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), picked), picked


def split_test(labels: Indices, fraction: float) -> tuple[Indices, Indices]:
    """(rest, test) for data that comes without a test split: the same for every recipe."""
    return split_indices(labels, fraction, _TEST_SEED)


def limited(labels: Indices, count: int | None, *, seed: int) -> Indices:
    """Pick `count` samples with the classes in proportion, the same for the same seed.

    Args:
        labels: class of each sample, shape (N,).
        count: how many to keep; None, or more than there are, keeps all.
        seed: of the choice within a class.

    Returns:
        Sorted indices; every class keeps at least one sample.

    Raises:
        DataError: `count` is smaller than the number of classes.
    """
    if count is None or count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    groups = list(_shuffled_members(labels, seed))
    if count < len(groups):
        raise DataError(
            f"{count} samples cannot hold {len(groups)} classes. Ask for at least {len(groups)} (data.limit_train)."
        )
    shares = _apportioned(np.array([len(group) for group in groups]), count)
    return np.sort(np.concatenate([group[:share] for group, share in zip(groups, shares, strict=True)]))


def check_class_counts(labels: Indices, classes: Sequence[str], *, least: int, source: str) -> None:
    """Refuse classes with fewer than `least` samples: they could not be in every split.

    Raises:
        DataError: the classes that are too small, with their counts.
    """
    counts = np.bincount(labels, minlength=len(classes))
    small = [f"'{classes[k]}' has {counts[k]}" for k in np.flatnonzero(counts < least).tolist()]
    if small:
        shown = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
        raise DataError(
            f"{source}: every class needs at least {least} sample{'s' if least > 1 else ''} to be in every split that"
            f" is cut from it, but {shown}. Add samples or remove the class."
        )


def _shuffled_members(labels: Indices, seed: int) -> list[Indices]:
    rng = np.random.default_rng(seed)
    groups: list[Indices] = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for members in groups:
        rng.shuffle(members)
    return groups


def _apportioned(sizes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Whole shares of `count` in proportion to `sizes` by largest remainder, at least 1 and at most the size."""
    ideal = 1 + (count - len(sizes)) * (sizes - 1) / max(1, (sizes - 1).sum())
    shares: NDArray[np.int64] = np.floor(ideal).astype(np.int64)
    missing = count - int(shares.sum())
    order = np.argsort(shares - ideal, kind="stable")
    shares[order[:missing]] += 1
    return shares
