"""The mean of the samples' extremes: a rare sample counts for no more than a common one."""

from __future__ import annotations

from edgekd.calibration._base import Calibrator, Grid
from edgekd.calibration._histogram import Histogram

__all__ = ["MovingAverage"]


class MovingAverage(Calibrator):
    """Cover what a sample reaches on the average.

    An exponential moving average of extremes, as quantization-aware training keeps it, depends on the order of the
    samples: the last ones weigh most. Its limit for a slow average over samples in random order does not, and is the
    mean: (mean over samples of min x, mean over samples of max x). That is what this calibrator takes, from exact
    sums, so that order, batch size and number of processes change nothing.

    Samples lie along axis 0 of the tensor. Of a tensor whose axis 0 is something else, the extremes are those of each
    of its slices.

    Reference: Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko, "Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference", 2017, arXiv:1712.05877, section 3.1.
    """

    def range(self, histogram: Histogram, grid: Grid) -> tuple[float, float]:
        return histogram.mean_extremes()
