"""Which samples calibrate: pure functions of the candidates, a count and a seed; a larger count only appends."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgekd.augment import uniforms
from edgekd.errors import DataError, UsageError

__all__ = ["first", "k_center", "random"]

_BLOCK = 1 << 20  # feature values that are looked at together


def first(ids: Tensor, count: int) -> Tensor:
    """The first samples, in their order.

    Args:
        ids: sample numbers, int64, shape (N,).
        count: how many, 1 to N.

    Returns:
        int64, shape (count,).

    Raises:
        UsageError: `count` is not between 1 and N.
    """
    _check(count, len(ids))
    return ids[:count].clone()


def random(ids: Tensor, count: int, *, seed: int) -> Tensor:
    """A random choice without replacement, in a random order; each sample's place depends on its number and the seed.

    Args:
        ids: sample numbers, all different, int64, shape (N,); their order does not matter.
        count: how many, 1 to N.
        seed: of the choice.

    Returns:
        int64, shape (count,).

    Raises:
        UsageError: `count` is not between 1 and N.
    """
    _check(count, len(ids))
    sorted_ids = torch.sort(ids).values
    order = torch.argsort(uniforms(sorted_ids, seed=seed, epoch=0, stream="calibration"), stable=True)
    return sorted_ids[order[:count]]


def k_center(features: Tensor | np.ndarray, count: int, *, seed: int) -> Tensor:
    """A spread over features: each next sample is the one that is farthest from all that were taken.

    The largest distance of any sample to its nearest taken one is at most twice what the best choice would have.
    Distances are Euclidean, of equally far samples the first is taken, and the start is the first of `random`. Beside
    the features, which may be mapped from a file, memory is one distance a sample and one block.

    Args:
        features: of all candidates, shape (N, D).
        count: how many, 1 to N.
        seed: of the start.

    Returns:
        rows of `features`, int64, shape (count,).

    Raises:
        UsageError: `count` is not between 1 and N, or `features` has another number of axes.
        DataError: a feature is NaN or infinite.

    Reference: Sener, Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", 2018,
    arXiv:1708.00489, algorithm 1.
    """
    matrix = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
    if matrix.ndim != 2:
        raise UsageError(f"k_center needs features of shape (N, D), got {list(matrix.shape)}. Flatten each sample's.")
    _check(count, len(matrix))
    taken = [int(random(torch.arange(len(matrix)), 1, seed=seed)[0])]
    nearest = np.full(len(matrix), np.inf)  # squared distance to the nearest taken one
    while True:
        _approach(nearest, matrix, taken[-1])
        # one that was taken is no candidate, even where all are equal
        nearest[taken[-1]] = -1.0
        if len(taken) == count:
            return torch.tensor(taken)
        taken.append(int(np.argmax(nearest)))


def _approach(nearest: np.ndarray, matrix: np.ndarray, row: int) -> None:
    """Lower each squared distance to that from one more row, in place, block by block."""
    center = np.asarray(matrix[row], dtype=np.float64)
    step = max(1, _BLOCK // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        apart = matrix[start : start + step] - center
        distance = np.einsum("nd,nd->n", apart, apart)
        if not np.isfinite(distance).all():
            odd = start + int(np.argmin(np.isfinite(distance)))
            raise DataError(
                f"A feature of sample {odd} is NaN, infinite or too large to square. Check the network that made it."
            )
        np.minimum(nearest[start : start + step], distance, out=nearest[start : start + step])


def _check(count: int, available: int) -> None:
    if not 1 <= count <= available:
        raise UsageError(
            f"Cannot choose {count} of {available} calibration samples. Set the count between 1 and {available}."
        )
