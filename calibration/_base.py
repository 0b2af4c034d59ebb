"""The contract of a calibrator: from a tensor's histogram to the range that int8 codes cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edgekd import spec
from edgekd.calibration._histogram import Histogram

__all__ = ["Calibrator", "Grid"]


@dataclass(frozen=True)
class Grid:
    """An integer grid.

    Args:
        low: lowest code.
        high: highest code.
        symmetric: zero-point fixed at 0.
        half_scales: scales are rounded to float16, because the shipped file stores them so.
    """

    low: int
    high: int
    symmetric: bool
    half_scales: bool = False

    def parameters(self, minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero-point of the range [minimum, maximum], widened to hold 0.

        Args:
            minimum: any shape.
            maximum: same shape.

        Returns:
            scale (> 0) and zero-point (int32), both of that shape. A range that starts at 0 has its
            zero-point at the lowest code, which is what lets a runtime absorb a ReLU.

        >>> Grid(0, 255, False).parameters(torch.tensor(0.0), torch.tensor(2.55))
        (tensor(0.0100), tensor(0, dtype=torch.int32))
        """
        minimum, maximum = minimum.clamp(max=0.0), maximum.clamp(min=0.0)
        if self.symmetric:
            scale = self.stored(_usable(torch.maximum(minimum / self.low, maximum / self.high)))
            return scale, torch.zeros_like(scale, dtype=torch.int32)
        scale = self.stored(_usable((maximum - minimum) / (self.high - self.low)))
        zero_point = (self.low - torch.round(minimum / scale)).clamp(self.low, self.high)
        return scale, zero_point.to(torch.int32)

    def stored(self, scale: Tensor) -> Tensor:
        """The scale as the shipped file keeps it; same shape and type.

        Beyond float16's normal numbers nothing is rounded: the file keeps such an operator in float32.
        """
        if not self.half_scales:
            return scale
        half = torch.finfo(torch.float16)
        return torch.where((scale < half.tiny) | (scale > half.max), scale, scale.half().to(scale.dtype))

    def quantize(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """The values that the codes stand for: quantized and dequantized, same shape."""
        codes = torch.round(values / scale + zero_point).clamp(self.low, self.high)
        return (codes - zero_point) * scale


def _usable(scale: Tensor) -> Tensor:
    """A scale that can be divided by: at least float32's epsilon, and 1 for a tensor that is always 0.

    Any scale serves that tensor; a tiny one would make the next bias's scale s_x * s_w, and its int32 code, explode.
    """
    return torch.where(scale == 0.0, torch.ones_like(scale), scale.clamp(min=torch.finfo(torch.float32).eps))


class Calibrator:
    """Chooses the range of a tensor from its histogram."""

    Options: ClassVar[type[spec.Options]] = spec.Options

    def __init__(self, options: spec.Options) -> None:
        self.options = options

    def range(self, histogram: Histogram, grid: Grid) -> tuple[float, float]:
        """(minimum, maximum) to be covered by the grid.

        Args:
            histogram: at least one value was counted.
            grid: the codes that will cover the range.
        """
        raise NotImplementedError
