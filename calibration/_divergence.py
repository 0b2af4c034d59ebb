"""How far the codes of a range are from the values, as a Kullback-Leibler divergence on a histogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgekd.calibration._base import Grid
from edgekd.calibration._histogram import BINS, Histogram

__all__ = ["Divergences", "Evidence"]

_OUTER = 1 / 32  # of the codes, whose mean stands for an outer one: single codes in a tail hold few values, by chance
_REACH = 4  # bins on each side that say what a bin would hold without an atom


@dataclass(frozen=True)
class Divergences:
    """Of M ranges; both of shape (M,).

    Args:
        values: KL(P || Q) in nats, without what the scatter of counts adds on the average.
        freedom: of the chi-square that this scatter adds to 2 N KL.
        total: N, the number of values.
    """

    values: np.ndarray
    freedom: np.ndarray
    total: float

    def noise(self, reference: int) -> np.ndarray:
        """Standard deviation of the difference to one of the ranges, in nats, shape (M,).

        Both are sums over the same counts. Where one range's codes are parts of another's, the difference of the two
        is a chi-square of its own, with as many degrees of freedom as they differ by.
        """
        spread: np.ndarray = np.sqrt(0.5 * np.abs(self.freedom - self.freedom[reference])) / self.total
        return spread


class Evidence:
    """A histogram summed up, so that the divergence of a range takes a few look-ups for each code.

    P is the observed distribution, with what lies outside the range on the outer codes. Q spreads what lies inside
    evenly over the bins that are filled within each code. So a wide range loses shape within its codes, and a narrow
    one is charged for the values that it clips.

    An atom is a value that occurs again and again: 0 behind a ReLU, 6 below a ReLU6's ceiling, what padding makes of
    a bias. It has no shape to lose. As it would outweigh everything else, shape is seen without atoms; they count
    where they are clipped.
    """

    def __init__(self, histogram: Histogram) -> None:
        counts = histogram.counts.numpy().astype(np.float64)
        smooth = _without_atoms(counts)
        self.width = 2.0 * histogram.limit / BINS
        self._limit = histogram.limit
        self._mass = _summed(counts)
        self._smooth = _summed(smooth)
        self._filled = _summed(smooth > 0)
        self._logs = _summed(smooth * np.log(np.maximum(smooth, 1.0)))
        self._freedom = _summed(_freedom(smooth))

    def divergences(self, low: np.ndarray, high: np.ndarray, grid: Grid) -> Divergences:
        """Of the grid over each range [low, high].

        With N values, of which c_e are clipped onto outer code e, which has o_e of its own (the mean over the outermost
        `_OUTER` of the codes, and half a value at least):

            N KL = sum_e (o_e + c_e) log((o_e + c_e) / o_e) + N log(1 - sum_e c_e / N)
                   + sum_j sum_{i in j} n_i log(n_i / (N_j / b_j))

        where n_i are the counts of the bins of code j, N_j their sum and b_j how many are not empty. Of values that do
        lie evenly within their codes the last term is half a chi-square with sum_j (b_j - 1) degrees of freedom.

        Args:
            low: at most 0, float64, shape (M,).
            high: at least 0, float64, shape (M,).
            grid: the codes.
        """
        scale, zero_point = (found.numpy() for found in grid.parameters(torch.from_numpy(low), torch.from_numpy(high)))
        borders = (np.arange(grid.low, grid.high + 2) - 0.5 - zero_point[:, None]) * scale[:, None]
        bins = np.clip(np.rint((borders + self._limit) / self.width), 0, BINS).astype(np.int32)
        smooth, filled = np.diff(self._smooth[bins], axis=1), np.diff(self._filled[bins], axis=1)
        first, last, total = bins[:, 0], bins[:, -1], self._mass[-1]
        even = smooth * np.log(np.maximum(smooth, 1.0) / np.maximum(filled, 1.0))
        shape = self._logs[last] - self._logs[first] - even.sum(axis=1)
        left, right = self._mass[first], total - self._mass[last]
        clipping = total * np.log(np.maximum(total - left - right, 0.5) / total)
        outer = max(1, round(_OUTER * smooth.shape[1]))
        for clipped, own in ((left, smooth[:, :outer]), (right, smooth[:, -outer:])):
            kept = np.maximum(own.mean(axis=1), 0.5)
            clipping += (kept + clipped) * np.log1p(clipped / kept)
        codes_share = np.minimum(self.width / scale, 1.0)  # of a bin: each code fixes one number of its bins
        freedom = (self._freedom[last] - self._freedom[first]) * (1.0 - codes_share)
        return Divergences((clipping + shape - 0.5 * freedom) / total, freedom, total)


def _without_atoms(counts: np.ndarray) -> np.ndarray:
    """The counts, with what stands out brought down to the median of its surroundings."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(counts, _REACH), 2 * _REACH + 1)
    usual = np.partition(around, _REACH, axis=1)[:, _REACH]
    # where bins are nearly empty, a few counts stand out by chance
    return np.where(counts > 2.0 * usual + 5.0, usual, counts)


def _freedom(counts: np.ndarray) -> np.ndarray:
    """How much scatter each bin has, of that of a bin with many counts: 0 to 1.

    Only filled bins are compared. Where counts are small their being filled leaves them little room: a Poisson variable
    of rate r that is not 0 has mean m = r / (1 - exp(-r)), and variance over mean 1 + r - m, which is 1 - exp(1 - m)
    within 0.05.
    """
    filled = counts > 0
    window = np.ones(2 * _REACH + 1)
    mean = np.convolve(counts, window, "same") / np.maximum(np.convolve(filled, window, "same"), 1.0)
    return np.where(filled, -np.expm1(1.0 - np.maximum(mean, 1.0)), 0.0)


def _summed(values: np.ndarray) -> np.ndarray:
    """Cumulative sums from 0, shape (BINS + 1,)."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
