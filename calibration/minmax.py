"""The exact extremes: nothing is clipped."""

from __future__ import annotations

from edgekd.calibration._base import Calibrator, Grid
from edgekd.calibration._histogram import Histogram

__all__ = ["MinMax"]


class MinMax(Calibrator):
    """Cover everything that was seen. Best when a bounded activation (ReLU6) or few outliers are expected."""

    def range(self, histogram: Histogram, grid: Grid) -> tuple[float, float]:
        return histogram.minimum, histogram.maximum
