"""Weights that swing between two codes during quantization-aware training, held still.

With a straight-through gradient a weight whose best value lies between two codes is pushed over the threshold from
either side, again and again; what it swings between last is what is shipped. Two remedies, alone or together: a loss
term that draws every weight to its code (dampening), and freezing each weight that swings too often at the code
where it was most.

Reference: Nagel, Fournarakis, Bondarenko, Blankevoort, "Overcoming Oscillations in Quantization-Aware Training", 2022,
arXiv:2203.11086, sections 4.1 (frequency), 4.2 (dampening) and 4.3 (iterative freezing, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd.calibration._fake_quantize import WeightQuantizer
from edgekd.calibration._learning import quantized_weights
from edgekd.methods._base import Term
from edgekd.spec import Options

__all__ = ["OscillationGuard", "OscillationOptions"]


class OscillationOptions(Options):
    """Which remedies, and how strong; both are off unless asked for, since at 8 bits weights rarely swing."""

    dampening: float = Field(0.0, ge=0.0, description="weight of the dampening term at the end; it grows from 0")
    freeze_above: float | None = Field(None, gt=0.0, lt=1.0, description="turns per step above which a weight freezes")
    freeze_above_at_end: float | None = Field(
        None, gt=0.0, lt=1.0, description="the same at the end; default: no change"
    )
    momentum: float = Field(0.01, gt=0.0, lt=1.0, description="share of a step in a weight's frequency and mean code")


class _Record(nn.Module):
    """What is remembered of one weight tensor; buffers, so that an interrupted training goes on as it was."""

    codes: Tensor
    direction: Tensor
    mean: Tensor
    frequency: Tensor
    frozen: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        for name in ("codes", "mean"):
            self.register_buffer(name, codes.clone())
        for name in ("direction", "frequency"):
            self.register_buffer(name, torch.zeros_like(codes))
        self.register_buffer("frozen", torch.zeros_like(codes, dtype=torch.bool))


class OscillationGuard:
    """Watches the quantized weights of a graph in training. Made before the training, closed after it.

    Args:
        graph: prepared and calibrated. Until `close` its state holds the guard's as well.
        options: what is done about it.
    """

    def __init__(self, graph: GraphModule, options: OscillationOptions) -> None:
        self.options = options
        self._progress = 0.0
        self._parts = list(quantized_weights(graph))
        for quantizer, weight in self._parts:
            quantizer.add_module("oscillation", _Record(_codes(quantizer, weight.detach())))

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Look at the weights as the last step left them, and put those that are frozen back.

        Args:
            progress: fraction of training done, in [0, 1); call this before every step.
        """
        self._progress = progress
        for quantizer, weight in self._parts:
            record = _record(quantizer)
            _update(record, _codes(quantizer, weight), self.options.momentum)
            if (limit := self._limit()) is not None:
                frozen = (record.frequency > limit) & ~record.frozen
                record.codes.copy_(torch.where(frozen, record.mean.round(), record.codes))
                record.frozen |= frozen
                self._put_back(quantizer, weight)

    def terms(self) -> Mapping[str, Term]:
        """The dampening term of one step, empty without one: lambda ||q(w) - clip(w)||^2 over all weights.

        q(w) counts as a constant; lambda rises from 0 to `dampening` along half a cosine.
        """
        if self.options.dampening == 0.0:
            return {}
        strength = self.options.dampening * 0.5 * (1.0 - math.cos(math.pi * self._progress))
        return {"dampening": Term(torch.stack([_distance(*part) for part in self._parts]).sum(), strength)}

    def frozen_share(self) -> float:
        """Which part of the quantized weights is frozen, in [0, 1]."""
        records = [_record(quantizer) for quantizer, _ in self._parts]
        return sum(int(one.frozen.sum()) for one in records) / max(sum(one.frozen.numel() for one in records), 1)

    @torch.no_grad()
    def close(self) -> None:
        """Put frozen weights back after the last step, and take the guard's state out of the graph."""
        for quantizer, weight in self._parts:
            self._put_back(quantizer, weight)
            del quantizer.oscillation

    def _limit(self) -> float | None:
        start, end = self.options.freeze_above, self.options.freeze_above_at_end
        if start is None or end is None:
            return start
        return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * self._progress))

    @staticmethod
    def _put_back(quantizer: WeightQuantizer, weight: nn.Parameter) -> None:
        record = _record(quantizer)
        if bool(record.frozen.any()):
            weight.copy_(torch.where(record.frozen, record.codes * _scale(quantizer, weight), weight))


def _update(record: _Record, codes: Tensor, momentum: float) -> None:
    """Count a turn where a code moves against its last move; frozen codes stay."""
    codes = torch.where(record.frozen, record.codes, codes)
    moved = codes - record.codes
    turned = (moved * record.direction < 0.0).float()
    record.frequency.lerp_(turned, momentum)
    record.direction.copy_(torch.where(moved != 0.0, moved.sign(), record.direction))
    record.mean.lerp_(codes, momentum)
    record.codes.copy_(codes)


def _record(quantizer: WeightQuantizer) -> _Record:
    record = quantizer.oscillation
    if not isinstance(record, _Record):
        raise TypeError("the guard of this graph is closed")
    return record


def _scale(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """The scale of each channel in the shape that broadcasts over the weight."""
    shape = [1] * weight.ndim
    shape[quantizer.ch_axis] = -1
    return quantizer.parameters_of(weight)[0].view(shape)


def _codes(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """The integers, as floats, that a weight is rounded to."""
    inverse = _scale(quantizer, weight).reciprocal()
    return (weight.detach() * inverse).round_().clamp_(quantizer.quant_min, quantizer.quant_max)


def _distance(quantizer: WeightQuantizer, weight: nn.Parameter) -> Tensor:
    scale = _scale(quantizer, weight)
    rounded = _codes(quantizer, weight) * scale
    clipped = weight.clamp(scale * quantizer.quant_min, scale * quantizer.quant_max)
    return (rounded - clipped).square().sum()
