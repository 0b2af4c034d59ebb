"""A streaming histogram of one tensor: fixed memory, and exact whatever the order or split of the batches.

Bins cover [-limit, limit] with `limit` a power of two. When a larger value arrives the limit doubles and
neighbouring bins merge. Bins are open towards 0 and closed away from it, (0, w], (w, 2w], ... and their mirror
images; 0 itself counts in the first positive one. So a value equal to the limit lies in the last bin, and stays in
the right one when the limit doubles. Edges are multiples of a power of two, which binary arithmetic hits exactly:
any order of updates and merges ends in the same counts.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor

from edgekd.errors import DataError

__all__ = ["BINS", "Histogram"]

BINS = 4096


class Histogram:
    """Counts of the values seen so far, with their exact extremes.

    Memory is BINS counters of 8 bytes, however much is seen.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.limit = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def update(self, values: Tensor) -> None:
        """Count every element of `values`, any shape.

        Raises:
            DataError: a value is NaN or infinite.
        """
        flat = values.detach().reshape(-1).to(torch.float32)
        if flat.numel() == 0:
            return
        low, high = (float(extreme) for extreme in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError("Calibration met a NaN or infinite value. Check the calibration data and the weights.")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._grow(max(abs(low), abs(high)))
        half = BINS // 2
        scaled = flat * (half / self.limit)
        # the sign decides the side, even where a tiny value's product underflows to 0
        index = torch.where(flat < 0, scaled.floor().clamp(max=-1), scaled.ceil().clamp(min=1) - 1)
        self.counts += torch.bincount(index.to(torch.int64) + half, minlength=BINS).cpu()

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts, as if its values had been seen here."""
        if other.total == 0:
            return
        self._grow(other.limit)
        twin = Histogram.from_json(other.to_json())
        twin._grow(self.limit)
        self.counts += twin.counts
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)

    def centres(self) -> Tensor:
        """The value at the middle of each bin, float64, shape (BINS,)."""
        half = BINS // 2
        return (torch.arange(BINS, dtype=torch.float64) - half + 0.5) * (self.limit / half)

    def to_json(self) -> dict[str, Any]:
        """Plain values; empty bins are left out, and so are the extremes of nothing."""
        filled = torch.nonzero(self.counts).reshape(-1)
        return {
            "limit": self.limit,
            "minimum": self.minimum if math.isfinite(self.minimum) else None,
            "maximum": self.maximum if math.isfinite(self.maximum) else None,
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
        histogram.counts[torch.tensor(values["bins"], dtype=torch.int64)] = torch.tensor(
            values["counts"], dtype=torch.int64
        )
        return histogram

    def _grow(self, magnitude: float) -> None:
        """Double the limit until `magnitude` fits, merging neighbouring bins."""
        if self.limit == 0.0:
            # the smallest power of two that holds the value; 2**-100 keeps half / limit inside float32
            self.limit = max(2.0 ** math.ceil(math.log2(magnitude)) if magnitude > 0 else 0.0, 2.0**-100)
        while magnitude > self.limit:
            half, quarter = BINS // 2, BINS // 4
            merged = self.counts.view(-1, 2).sum(dim=1)
            self.counts = torch.zeros(BINS, dtype=torch.int64)
            self.counts[quarter : quarter + half] = merged
            self.limit *= 2.0
