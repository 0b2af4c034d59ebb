"""A streaming histogram of one tensor: fixed memory, and exact whatever the order or split of the batches.

Bins cover [-limit, limit] with `limit` a power of two. When a larger value arrives the limit doubles and
neighbouring bins merge. Bins are open towards 0 and closed away from it, (0, w], (w, 2w], ... and their mirror
images; 0 itself counts in the first positive one. So a value equal to the limit lies in the last bin, and stays in
the right one when the limit doubles. Edges are multiples of a power of two, which binary arithmetic hits exactly:
any order of updates and merges ends in the same counts.

The sums of the samples' extremes are whole numbers of 2^-149, the smallest step of float32: sums of integers do not
depend on their order, sums of floats would.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from edgekd.calibration._counting import BINS, count, extremes, rows_of
from edgekd.errors import DataError

__all__ = ["BINS", "Histogram"]

_SMALLEST_LIMIT = 2.0**-100  # keeps bins per unit inside float32
_STEPS = 149  # every float32 is a whole number of 2^-149


class Histogram:
    """Counts of the values seen so far, with their exact extremes, overall and on the average of the samples.

    Memory is BINS counters of 8 bytes and some numbers, however much is seen.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.limit = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf
        self.samples = 0
        self._low_sum = 0  # of the samples' extremes, in units of 2^-149
        self._high_sum = 0

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def update(self, values: Tensor | np.ndarray) -> None:
        """Count every element of `values`.

        Args:
            values: any shape; axis 0 is the sample axis.

        Raises:
            DataError: a value is NaN or infinite; nothing of `values` was counted.
        """
        rows = rows_of(values)
        if 0 in rows.shape:
            return
        lows, highs = extremes(rows)
        # + 0.0 makes 0.0 of -0.0: which of the two is met first would depend on the order
        low, high = float(lows.min()) + 0.0, float(highs.max()) + 0.0
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError("Calibration met a NaN or infinite value. Check the calibration data and the weights.")
        self._grow(max(abs(low), abs(high)))
        self.counts += torch.from_numpy(count(rows, self.limit, signed=low < 0.0))
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.samples += len(rows)
        self._low_sum += _exact_sum(lows)
        self._high_sum += _exact_sum(highs)

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts, as if its values had been seen here."""
        if other.samples == 0:
            return
        self._grow(other.limit)
        self.counts += _coarser(other.counts, round(math.log2(self.limit / other.limit)))
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.samples += other.samples
        self._low_sum += other._low_sum
        self._high_sum += other._high_sum

    def mean_extremes(self) -> tuple[float, float]:
        """The mean over the samples of each one's least value, and of its largest.

        Correctly rounded from an exact sum, so it does not depend on the order of the samples. At least one was seen.
        """
        whole = self.samples << _STEPS
        return self._low_sum / whole, self._high_sum / whole

    def centres(self) -> Tensor:
        """The value at the middle of each bin, float64, shape (BINS,)."""
        half = BINS // 2
        return (torch.arange(BINS, dtype=torch.float64) - half + 0.5) * (self.limit / half)

    def to_json(self) -> dict[str, Any]:
        """Plain values; empty bins are left out, and so are the extremes of nothing.

        The two sums are hexadecimal, in units of 2^-149: they have more digits than JSON's numbers carry safely.
        """
        filled = torch.nonzero(self.counts).reshape(-1)
        return {
            "limit": self.limit,
            "minimum": self.minimum if math.isfinite(self.minimum) else None,
            "maximum": self.maximum if math.isfinite(self.maximum) else None,
            "samples": self.samples,
            "minimum_sum": hex(self._low_sum),
            "maximum_sum": hex(self._high_sum),
            "bins": filled.tolist(),
            "counts": self.counts[filled].tolist(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild what `to_json` gave."""
        histogram = cls()
        histogram.limit = float(values["limit"])
        if values["minimum"] is not None:
            histogram.minimum, histogram.maximum = float(values["minimum"]), float(values["maximum"])
        histogram.samples = int(values["samples"])
        histogram._low_sum, histogram._high_sum = int(values["minimum_sum"], 16), int(values["maximum_sum"], 16)
        histogram.counts[torch.tensor(values["bins"], dtype=torch.int64)] = torch.tensor(
            values["counts"], dtype=torch.int64
        )
        return histogram

    def _grow(self, magnitude: float) -> None:
        """Double the limit until `magnitude` fits, merging neighbouring bins."""
        limit = max(_power_of_two(magnitude), _SMALLEST_LIMIT)
        if self.limit == 0.0:
            self.limit = limit
        elif limit > self.limit:
            self.counts = _coarser(self.counts, round(math.log2(limit / self.limit)))
            self.limit = limit


def _power_of_two(magnitude: float) -> float:
    """The smallest one that is not below `magnitude`; 0 for 0."""
    fraction, exponent = math.frexp(magnitude)
    return magnitude if fraction == 0.5 else math.ldexp(float(fraction > 0), exponent)


def _coarser(counts: Tensor, doublings: int) -> Tensor:
    """The counts after the limit has doubled so many times: each bin of a side takes 2^doublings old ones."""
    half = BINS // 2
    merged = 1 << min(doublings, half.bit_length() - 1)  # from there on each side is one bin
    found = torch.zeros_like(counts)
    kept = half // merged
    found[half - kept : half + kept] = counts.view(-1, merged).sum(dim=1)
    return found


def _exact_sum(values: np.ndarray) -> int:
    """Of float32 values, in units of 2^-149."""
    # float64 holds every product exactly
    return sum(map(int, np.ldexp(values.astype(np.float64), _STEPS).tolist()))
