"""Clip the rarest values on both sides."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from edgekd.calibration._base import Calibrator, Grid
from edgekd.calibration._histogram import BINS, Histogram
from edgekd.spec import Options

__all__ = ["Percentile"]


class PercentileOptions(Options):
    """How much is kept."""

    percentile: float = Field(99.99, gt=50.0, le=100.0)


class Percentile(Calibrator):
    """Leave out the share of values beyond a percentile, half of it on each side.

    A one-sided tensor (after a ReLU) loses values on its long side only, since its other extreme is 0 and
    stays inside the range.

    Reference: Wu, Judd, Zhang, Isaev, Micikevicius, "Integer Quantization for Deep Learning Inference:
    Principles and Empirical Evaluation", 2020, arXiv:2004.09602, section 4.2.
    """

    Options: ClassVar[type[Options]] = PercentileOptions
    options: PercentileOptions

    def range(self, histogram: Histogram, grid: Grid) -> tuple[float, float]:
        share = (1.0 - self.options.percentile / 100.0) / 2.0
        cumulative = torch.cumsum(histogram.counts.to(torch.float64), dim=0) / histogram.total
        width = 2 * histogram.limit / BINS
        low_bin = int(torch.searchsorted(cumulative, share, right=True))
        high_bin = int(torch.searchsorted(cumulative, 1.0 - share))
        low = -histogram.limit + width * min(low_bin, BINS - 1)
        high = -histogram.limit + width * (min(high_bin, BINS - 1) + 1)
        return max(low, histogram.minimum), min(high, histogram.maximum)
