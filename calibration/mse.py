"""The range whose quantization error is smallest in the mean square."""

from __future__ import annotations

import torch

from edgekd.calibration._base import Calibrator, Grid
from edgekd.calibration._histogram import Histogram

__all__ = ["MeanSquaredError"]

# From the full range down to a fifth of it: below that clipping dominates for any tensor with one mode.
_SHRINK = torch.linspace(1.0, 0.2, 161, dtype=torch.float64)


class MeanSquaredError(Calibrator):
    """Shrink the observed range step by step and keep the one with the least expected squared error.

    The error of each candidate is computed on the histogram: E[(x - q(x))^2] over the bins' centres, so
    clipping and rounding are weighed by how often each value occurs.

    Reference: Nagel, Fournarakis, Amjad, Bondarenko, van Baalen, Blankevoort, "A White Paper on Neural
    Network Quantization", 2021, arXiv:2106.08295, equation 21.
    """

    def range(self, histogram: Histogram, grid: Grid) -> tuple[float, float]:
        filled = histogram.counts > 0
        centres = histogram.centres()[filled].clamp(histogram.minimum, histogram.maximum)
        weights = histogram.counts[filled].to(torch.float64) / histogram.total
        low, high = histogram.minimum * _SHRINK, histogram.maximum * _SHRINK
        scale, zero_point = grid.parameters(low, high)
        quantized = grid.quantize(centres[None, :], scale[:, None], zero_point[:, None].to(torch.float64))
        error = ((quantized - centres) ** 2 * weights).sum(dim=1)
        best = int(torch.argmin(error))
        return float(low[best]), float(high[best])
