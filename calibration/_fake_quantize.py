"""The quantizers that stand in a prepared graph: they observe, simulate int8, and know their parameters.

Every quantizer has a phase, set for the whole graph at once:

    off       passes values through: the graph equals the float model
    observe   passes values through and fills the histogram
    track     simulates int8; the range follows the batches by a slow moving average
    frozen    simulates int8; the range stands still

A tracked range keeps the calibrator's choice: the moving average follows the extremes of the batches times
the ratio of the calibrated range to the extremes that were seen in calibration.

Reference: Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", 2017, arXiv:1712.05877, sections 3 and 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import FakeQuantizeBase

from edgekd.calibration._base import Calibrator, Grid
from edgekd.calibration._histogram import Histogram
from edgekd.errors import DataError

__all__ = ["ActivationQuantizer", "Phase", "WeightQuantizer", "quantizers", "set_phase"]

Phase = Literal["off", "observe", "track", "frozen"]

_AVERAGING = 0.01  # share of a new batch in the tracked range; about 100 batches of memory


class _Quantizer(FakeQuantizeBase):  # type: ignore[misc]
    """What the preparation and conversion of torchao ask of a quantizer.

    Args:
        grid: the codes.
        dtype: element type of the codes.
        quant_min: lowest code; the grid says the same.
        quant_max: highest code; the grid says the same.
        qscheme: per tensor or per channel.
        is_dynamic: always False here.
    """

    def __init__(
        self, grid: Grid, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: Any, is_dynamic: bool = False
    ) -> None:
        super().__init__()
        self.grid, self.dtype, self.qscheme, self.is_dynamic = grid, dtype, qscheme, is_dynamic
        self.quant_min, self.quant_max = quant_min, quant_max
        self.phase: Phase = "off"


class ActivationQuantizer(_Quantizer):
    """One scale and zero-point for a whole activation.

    Args:
        calibrator: chooses the range after observation.
        (others): see the base.
    """

    minimum: Tensor
    maximum: Tensor
    ratio: Tensor

    def __init__(
        self,
        calibrator: Calibrator,
        grid: Grid,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: Any,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(grid, dtype, quant_min, quant_max, qscheme, is_dynamic)
        self.calibrator = calibrator
        self.histogram = Histogram()
        self.register_buffer("minimum", torch.tensor(0.0))
        self.register_buffer("maximum", torch.tensor(0.0))
        self.register_buffer("ratio", torch.ones(2))

    def calibrate(self) -> None:
        """Take the calibrator's range of what was observed.

        Raises:
            DataError: nothing was observed.
        """
        if self.histogram.total == 0:
            raise DataError("Calibration saw no data. Give quantize.calibration_samples at least one sample.")
        low, high = _with_zero(*self.calibrator.range(self.histogram, self.grid))
        self.minimum.fill_(low)
        self.maximum.fill_(high)
        seen = _with_zero(self.histogram.minimum, self.histogram.maximum)
        ratios = [chosen / extreme if extreme else 1.0 for chosen, extreme in zip((low, high), seen, strict=True)]
        self.ratio.copy_(torch.tensor(ratios))

    def forget(self) -> None:
        """Start observing anew."""
        self.histogram = Histogram()

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero-point, both scalars."""
        return self.grid.parameters(self.minimum, self.maximum)

    def forward(self, values: Tensor) -> Tensor:
        if self.phase == "off":
            return values
        if self.phase == "observe":
            self.histogram.update(values)
            return values
        if self.phase == "track":
            low, high = torch.aminmax(values.detach())
            self.minimum.lerp_(low.float().clamp(max=0.0) * self.ratio[0], _AVERAGING)
            self.maximum.lerp_(high.float().clamp(min=0.0) * self.ratio[1], _AVERAGING)
        scale, zero_point = self.calculate_qparams()
        return torch.fake_quantize_per_tensor_affine(
            values.float(), scale, zero_point, self.quant_min, self.quant_max
        ).to(values.dtype)


def _with_zero(low: float, high: float) -> tuple[float, float]:
    """The range widened to hold 0, as every grid widens it; so a ratio of two ranges is in [0, 1]."""
    return min(low, 0.0), max(high, 0.0)


class WeightQuantizer(_Quantizer):
    """One scale per output channel, always from the weights as they are now; zero-point 0.

    The class's name must hold "PerChannel" for torchao to pass the axis; see `PerChannelWeightQuantizer`.
    """

    def __init__(
        self,
        grid: Grid,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: Any,
        ch_axis: int = 0,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(grid, dtype, quant_min, quant_max, qscheme, is_dynamic)
        self.ch_axis = ch_axis
        self._weight: Tensor | None = None

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero-point, both of shape (output channels,).

        Raises:
            RuntimeError: the graph never ran.
        """
        if self._weight is None:
            raise RuntimeError("a weight quantizer has no parameters before the graph has run once")
        return self._parameters_of(self._weight)

    def _parameters_of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        largest = weight.detach().transpose(0, self.ch_axis).flatten(1).abs().amax(dim=1).float()
        # a channel of zeros would make the bias's scale s_x * s_w so small that its int32 code overflows
        floor = largest.max().clamp(min=1e-6) * 2.0**-12
        scale = self.grid.stored(torch.maximum(largest, floor) / self.grid.high)
        return scale, torch.zeros_like(scale, dtype=torch.int32)

    def forward(self, weight: Tensor) -> Tensor:
        self._weight = weight.detach()
        if self.phase in ("off", "observe"):
            return weight
        scale, zero_point = self._parameters_of(weight)
        return torch.fake_quantize_per_channel_affine(
            weight.float(), scale, zero_point, self.ch_axis, self.quant_min, self.quant_max
        ).to(weight.dtype)


class PerChannelWeightQuantizer(WeightQuantizer):
    """`WeightQuantizer` under the name that torchao looks for when it decides to pass the channel axis."""


def quantizers(graph: nn.Module) -> Iterator[tuple[str, _Quantizer]]:
    """Every quantizer of a prepared graph with its name, each once."""
    for name, module in graph.named_modules():
        if isinstance(module, _Quantizer):
            yield name, module


def set_phase(graph: nn.Module, phase: Phase) -> None:
    """Put every quantizer of a prepared graph into one phase; leaving `observe` is `calibrate`'s work."""
    for _, quantizer in quantizers(graph):
        quantizer.phase = phase
