"""The range that loses the least information: the divergence between values and codes is smallest."""

from __future__ import annotations

import numpy as np

from edgekd.calibration._base import Calibrator, Grid
from edgekd.calibration._divergence import Evidence
from edgekd.calibration._histogram import BINS, Histogram

__all__ = ["Entropy"]

_CANDIDATES = 64
_SHORTEST = 1 / 8  # of an extreme; shorter ends are not tried
_SIGMAS = 2.0  # of scatter, within which ranges are equal
_ROUNDS = 2  # of both ends in turn


class Entropy(Calibrator):
    """Clip where the codes then tell more about the values: Kullback-Leibler calibration, for the grid as it is.

    The usual implementations try thresholds -T and T and judge each by 128 codes. Here a range is judged by the codes
    that the grid has for it, all 256 where a tensor follows a ReLU, and the two ends of an asymmetric grid are sought
    in turn. Values that occur again and again are no shape that coarse codes lose (`_divergence.Evidence`). Counts
    that scatter look like lost shape too, the more the fewer there are; so of the ranges that this scatter cannot
    tell from the best one, the widest is taken: nothing is clipped without evidence.

    References: Migacz, "8-bit Inference with TensorRT", GPU Technology Conference, 2017, the slides on calibration.
    Wu, Judd, Zhang, Isaev, Micikevicius, "Integer Quantization for Deep Learning Inference: Principles and Empirical
    Evaluation", 2020, arXiv:2004.09602, section 4.2.
    """

    def range(self, histogram: Histogram, grid: Grid) -> tuple[float, float]:
        codes = grid.high - grid.low
        if codes > BINS // 8:
            return histogram.minimum, histogram.maximum  # codes as narrow as bins lose no shape that bins could show
        evidence = Evidence(histogram)
        least = evidence.width * codes  # of a range: one bin a code
        longest = max(-histogram.minimum, 0.0), max(histogram.maximum, 0.0)
        if not grid.symmetric:
            down, up = _both_ends(evidence, longest, grid, least)
            return 0.0 - down, up
        ends = _ends(max(longest), 0.5 * least)
        down, up = (np.minimum(ends, one) for one in longest)
        best = _widest_good(evidence, down, up, grid)
        return 0.0 - float(down[best]), float(up[best])


def _both_ends(evidence: Evidence, longest: tuple[float, float], grid: Grid, least: float) -> tuple[float, float]:
    """How far the range reaches below 0 and above it: each end in turn, the longer first, until none moves."""
    reach: list[float] = list(longest)
    other_was: list[float | None] = [None, None]
    first = int(longest[1] >= longest[0])
    for side in (first, 1 - first) * _ROUNDS:
        other = reach[1 - side]
        if longest[side] == 0.0 or other_was[side] == other:
            continue
        other_was[side] = other
        ends = _ends(longest[side], least - other)
        rest = np.full_like(ends, other)
        down, up = (rest, ends) if side else (ends, rest)
        reach[side] = float(ends[_widest_good(evidence, down, up, grid)])
    return reach[0], reach[1]


def _ends(longest: float, least: float) -> np.ndarray:
    """Candidates for one end, the longest first, none shorter than `least`; shape (_CANDIDATES,)."""
    return np.linspace(longest, min(longest, max(longest * _SHORTEST, least)), _CANDIDATES)


def _widest_good(evidence: Evidence, down: np.ndarray, up: np.ndarray, grid: Grid) -> int:
    """Index of the first range, ordered from wide to narrow, that scatter cannot tell from the best."""
    found = evidence.divergences(-down, up, grid)
    best = int(np.argmin(found.values))
    return int(np.argmax(found.values <= found.values[best] + _SIGMAS * found.noise(best)))
