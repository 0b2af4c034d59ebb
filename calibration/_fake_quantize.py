"""The quantizers that stand in a prepared graph: they observe, simulate int8, and know their parameters.

Every quantizer has a phase, set for the whole graph at once:

    off       passes values through: the graph equals the float model
    observe   passes values through and fills the histogram
    track     simulates int8; the range follows the batches by a slow moving average
    learn     simulates int8; the range learns by gradient, in a graph that `learn_ranges` made ready for it
    frozen    simulates int8; the range stands still

A tracked range keeps the calibrator's choice: the moving average follows the extremes of the batches times
the ratio of the calibrated range to the extremes that were seen in calibration. A learned range is the calibrated
one scaled by a gain and, where it reaches to both sides of 0, moved by a shift. A range that learns is not tracked.

Reference: Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", 2017, arXiv:1712.05877, sections 3 and 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn
from torchao.quantization.pt2e import FakeQuantizeBase

from edgekd._messages import largest
from edgekd.calibration import _compiled
from edgekd.calibration._base import Calibrator, Grid
from edgekd.calibration._histogram import Histogram
from edgekd.calibration._pair_sums import LARGEST_SUM, largest_pair
from edgekd.calibration._rounding import (
    SMALLEST_GAIN,
    Range,
    gradient_scale,
    learned_channels,
    learned_tensor,
    moved_ends,
    rounded_channels,
    rounded_tensor,
    scaled,
)
from edgekd.errors import DataError, UsageError

__all__ = [
    "ActivationQuantizer",
    "PerChannelWeightQuantizer",
    "Phase",
    "WeightQuantizer",
    "quantizers",
    "set_phase",
]

Phase = Literal["off", "observe", "track", "learn", "frozen"]

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

    gain: nn.Parameter | None
    """The scale over what it was when learning began; None unless it learns."""
    own_rate: float
    """Learning rate of what learns here over that of the weights; the engine reads it."""

    def __init__(
        self, grid: Grid, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: Any, is_dynamic: bool = False
    ) -> None:
        super().__init__()
        self.grid, self.dtype, self.qscheme, self.is_dynamic = grid, dtype, qscheme, is_dynamic
        self.quant_min, self.quant_max = quant_min, quant_max
        self.phase: Phase = "off"
        self.own_rate = 1.0
        self.register_parameter("gain", None)

    def settle(self) -> None:
        """Make what was learned the range, and stop learning; what is computed stays the same."""
        raise NotImplementedError

    def learning(self) -> nn.Parameter | None:
        """The gain if it learns in this phase; one that left its bounds is put back."""
        if self.gain is None or self.phase != "learn":
            return None
        with torch.no_grad():
            self.gain.clamp_(min=SMALLEST_GAIN)
        return self.gain


class ActivationQuantizer(_Quantizer):
    """One scale and zero-point for a whole activation.

    Args:
        calibrator: chooses the range after observation.
        (others): see the base.
    """

    minimum: Tensor
    maximum: Tensor
    ratio: Tensor
    shift: nn.Parameter | None
    """Move of the lower end in widths of the range when learning began; None unless it learns."""

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
        self.register_parameter("shift", None)

    def calibrate(self) -> None:
        """Take the calibrator's range of what was observed.

        Raises:
            DataError: nothing was observed.
        """
        if self.histogram.total == 0:
            raise DataError("Calibration saw no data. Give quantize.calibration_samples at least one sample.")
        low, high = _with_zero(*self.calibrator.range(self.histogram, self.grid))
        self.settle()
        self.minimum.fill_(low)
        self.maximum.fill_(high)
        seen = _with_zero(self.histogram.minimum, self.histogram.maximum)
        ratios = [chosen / extreme if extreme else 1.0 for chosen, extreme in zip((low, high), seen, strict=True)]
        self.ratio.copy_(torch.tensor(ratios))

    def forget(self) -> None:
        """Start observing anew."""
        self.histogram = Histogram()

    def learn(self) -> None:
        """Let the range learn from where it is.

        Its scale always does; its offset only on an asymmetric grid and if it reaches below 0: a zero-point that
        absorbs a ReLU stays at the lowest code.
        """
        self.settle()
        self.gain = nn.Parameter(torch.ones_like(self.minimum).view(1))
        if not self.grid.symmetric and bool(self.minimum < 0):
            self.shift = nn.Parameter(torch.zeros_like(self.gain))

    def settle(self) -> None:
        """Make what was learned the range, and stop learning; what is computed stays the same."""
        low, high = self.ends()
        self.minimum.copy_(low)
        self.maximum.copy_(high)
        self.gain = self.shift = None

    def ends(self) -> tuple[Tensor, Tensor]:
        """The range as it is used now, what was learned included: two scalars without gradient."""
        if self.gain is None:
            return self.minimum, self.maximum
        return moved_ends(self.minimum, self.maximum, self.gain.detach(), self.shift)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero-point, both scalars."""
        return self.grid.parameters(*self.ends())

    def forward(self, values: Tensor) -> Tensor:
        if self.phase == "off":
            return values
        if self.phase == "observe":
            self.histogram.update(values)
            return values
        if self.phase == "track" and self.gain is None:
            self._track(values.detach())
        gain = self.learning()
        scale, zero_point = self.calculate_qparams()
        if gain is not None:
            return self._learned(values.float(), gain, scale, zero_point).to(values.dtype)
        return rounded_tensor(values.float(), scale, zero_point, self.quant_min, self.quant_max).to(values.dtype)

    def _track(self, values: Tensor) -> None:
        # not aminmax: it has vector instructions for one memory layout only
        low, high = _over_processes(values.amin().float(), values.amax().float())
        self.minimum.lerp_(low.clamp(max=0.0) * self.ratio[0], _AVERAGING)
        self.maximum.lerp_(high.clamp(min=0.0) * self.ratio[1], _AVERAGING)

    def _learned(self, values: Tensor, gain: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        start, _ = self.grid.parameters(self.minimum, self.maximum)
        low, high = self.quant_min, self.quant_max
        top = high if self.grid.symmetric else high - low
        if torch.compiler.is_compiling():
            weight = gradient_scale(values[0].numel(), top) / start
            return _compiled.learned(values, gain, self.shift, (scale, zero_point), (low, high), weight, top)
        used = Range(float(scale), int(zero_point), low, high, float(start), top)
        return learned_tensor(values, gain, self.shift, used)


def _over_processes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes of the whole batch, where several processes share it: the range is one, as in one process."""
    # asked of torch itself: a compiled network has this in its graph
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return low, high
    both = largest(torch.stack([-low, high]))
    return -both[0], both[1]


class WeightQuantizer(_Quantizer):
    """One scale per output channel, from the weights as they are now unless it was learned; zero-point 0.

    With `pairs` the scale is large enough for neighbouring codes to be summed in 16 bits, see `_pair_sums`.

    The class's name must hold "PerChannel" for torchao to pass the axis; see `PerChannelWeightQuantizer`.
    """

    scale: Tensor | None
    """The scales once they are learned, when learning began; None while they follow the weights."""

    def __init__(
        self,
        grid: Grid,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: Any,
        ch_axis: int = 0,
        is_dynamic: bool = False,
        pairs: bool = False,
    ) -> None:
        super().__init__(grid, dtype, quant_min, quant_max, qscheme, is_dynamic)
        self.ch_axis, self.pairs = ch_axis, pairs
        self._weight: Tensor | None = None
        self.register_buffer("scale", None)

    def learn(self, weight: Tensor) -> None:
        """Let the scales learn, from what they are for this weight."""
        self.scale = self.parameters_of(weight)[0]
        self.gain = nn.Parameter(torch.ones_like(self.scale))

    def settle(self) -> None:
        """Keep the scales that were learned, and stop learning; what is computed stays the same."""
        if self.scale is not None and self.gain is not None:
            self.scale, self.gain = scaled(self.scale, self.gain.detach()), None

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero-point, both of shape (output channels,).

        Raises:
            RuntimeError: the graph never ran.
        """
        if self._weight is None:
            raise RuntimeError("a weight quantizer has no parameters before the graph has run once")
        return self.parameters_of(self._weight)

    def parameters_of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero-point that this weight gets, both of shape (output channels,)."""
        if self.scale is not None:
            scale = self.scale if self.gain is None else scaled(self.scale, self.gain.detach())
            if self.pairs:
                scale = torch.maximum(scale, self._largest_pair(weight) / LARGEST_SUM)
        else:
            scale = self._covering(weight.detach())
        scale = self.grid.stored(scale)
        return scale, torch.zeros_like(scale, dtype=torch.int32)

    def _covering(self, weight: Tensor) -> Tensor:
        axes = [axis for axis in range(weight.ndim) if axis != self.ch_axis]
        largest = torch.maximum(weight.amax(axes), -weight.amin(axes)).float()
        # a channel of zeros would make the bias's scale s_x * s_w so small that its int32 code overflows
        floor = largest.max().clamp(min=1e-6) * 2.0**-12
        largest = torch.maximum(largest, floor)
        if not self.pairs:
            return largest / self.grid.high
        # the largest weight stays exactly a code, as without pairs: on EfficientNet-Lite0 that is worth 0.7 dB
        return largest / (LARGEST_SUM * largest / self._largest_pair(weight)).floor().clamp(max=self.grid.high)

    def _largest_pair(self, weight: Tensor) -> Tensor:
        return largest_pair(weight.movedim(self.ch_axis, 0)).float()

    def forward(self, weight: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self._weight = weight.detach()
        if self.phase in ("off", "observe"):
            return weight
        values, gain = weight.float(), self.learning()
        scale, _ = self.parameters_of(weight)
        if self.scale is None:
            rounded = rounded_channels(values, scale, self.ch_axis, self.quant_min, self.quant_max)
        else:
            rounded = learned_channels(values, gain, scale, self.scale, self.ch_axis, self.quant_min, self.quant_max)
        return rounded.to(weight.dtype)


class PerChannelWeightQuantizer(WeightQuantizer):
    """`WeightQuantizer` under the name that torchao looks for when it decides to pass the channel axis."""


def _with_zero(low: float, high: float) -> tuple[float, float]:
    """The range widened to hold 0, as every grid widens it; so a ratio of two ranges is in [0, 1]."""
    return min(low, 0.0), max(high, 0.0)


def quantizers(graph: nn.Module) -> Iterator[tuple[str, _Quantizer]]:
    """Every quantizer of a prepared graph with its name, each once."""
    for name, module in graph.named_modules():
        if isinstance(module, _Quantizer):
            yield name, module


def set_phase(graph: nn.Module, phase: Phase) -> None:
    """Put every quantizer of a prepared graph into one phase; leaving `observe` is `calibrate`'s work.

    Raises:
        UsageError: the phase is `learn`, and no range has a parameter.
    """
    found = [quantizer for _, quantizer in quantizers(graph)]
    if phase == "learn" and found and all(one.gain is None for one in found):
        raise UsageError("No range of this graph can learn. Call learn_ranges before phase 'learn'.")
    for one in found:
        one.phase = phase
