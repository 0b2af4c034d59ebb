"""Rounding to an integer grid with gradients: what the quantizers of a prepared graph compute in every step.

On a processor the same numbers as torch's own fake quantization come from its plain vectorised operators, about ten
times faster, and the gradient's mask is taken from the saved input, which the graph keeps for other reasons anyway.
Other devices run torch's own operators, torch.compile those of `_compiled`.

Reference: Esser, McKinstry, Bablani, Appuswamy, Modha, "Learned Step Size Quantization", 2019, arXiv:1902.08153,
equations 1 to 5; Bhalgat, Lee, Nagel, Blankevoort, Kwak, "LSQ+: Improving low-bit quantization through learnable
offsets and better initialization", 2020, arXiv:2004.09576, equations 4 to 9.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgekd.calibration import _compiled

__all__ = [
    "SMALLEST_GAIN",
    "Range",
    "gradient_scale",
    "learned_channels",
    "learned_tensor",
    "moved_ends",
    "rounded_channels",
    "rounded_tensor",
    "scaled",
]

_PIECE = 2**18  # numbers, a megabyte

SMALLEST_GAIN = 2.0**-10
"""A learned scale stays positive, and far from where an int32 bias over it overflows."""


class Range(NamedTuple):
    """A learned range as numbers.

    Args:
        scale: s, as it is used.
        zero_point: the code of 0.
        low: lowest code.
        high: highest code.
        start: s when learning began.
        top: Q_P of the paper, the codes that one end of the range is away from the other, or from 0.
    """

    scale: float
    zero_point: int
    low: int
    high: int
    start: float
    top: int


def rounded_tensor(values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Quantize and dequantize on one grid; the gradient passes where nothing was clipped.

    Args:
        values: float32, any shape.
        scale: scalar, > 0.
        zero_point: int32 scalar.
        low: lowest code.
        high: highest code.
    """
    if torch.compiler.is_compiling():
        return _compiled.rounded(values, scale, zero_point, low, high)
    if values.device.type != "cpu":
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, low, high)
    zero = int(zero_point)
    rounded: Tensor = _Tensor.apply(values, float(scale), float(scale.reciprocal()), low - zero, high - zero)  # type: ignore[no-untyped-call]
    return rounded


def rounded_channels(values: Tensor, scale: Tensor, axis: int, low: int, high: int) -> Tensor:
    """Quantize and dequantize with zero-point 0 on a grid for each channel that clips nothing by more than half a code.

    Args:
        values: float32.
        scale: one for each channel, shape (C,), > 0.
        axis: of the channels.
        low: lowest code.
        high: highest code.
    """
    if torch.compiler.is_compiling():
        scale = _compiled.once(scale)
    elif values.device.type != "cpu":
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(values, scale, zero_point, axis, low, high)
    rounded: Tensor = _Channels.apply(values, _along(scale, values, axis), low, high)  # type: ignore[no-untyped-call]
    return rounded


def learned_tensor(values: Tensor, gain: Tensor, shift: Tensor | None, used: Range) -> Tensor:
    """Quantize and dequantize on one grid whose scale, and offset, learn.

    Args:
        values: float32, batch first.
        gain: the scale over its start, shape (1,).
        shift: move of the range's lower end in widths of the range at the start, shape (1,); None if it stays.
        used: the grid as these two make it now.

    Returns:
        Same shape as `values`. The gradient of `gain` is LSQ's of the scale, grad_s / sqrt(N Q_P), divided by the
        start: plain gradient descent moves the scale by what the paper says. N counts the values of one sample,
        since a loss is a mean over samples already.
    """
    rounded: Tensor = _LearnedTensor.apply(values, gain, shift, used)  # type: ignore[no-untyped-call]
    return rounded


def learned_channels(
    values: Tensor, gain: Tensor | None, scale: Tensor, start: Tensor, axis: int, low: int, high: int
) -> Tensor:
    """Quantize and dequantize with zero-point 0 on a grid for each channel whose scale learns, or has learned.

    Args:
        values: float32.
        gain: each channel's scale over its start, shape (C,); None once it learns no more.
        scale: as it is used, shape (C,).
        start: when learning began, shape (C,).
        axis: of the channels.
        low: lowest code.
        high: highest code.

    Returns:
        Same shape as `values`; see `learned_tensor` for the gradient. N counts the values of one channel.
    """
    if torch.compiler.is_compiling():
        scale = _compiled.once(scale)
    rounded: Tensor = _LearnedChannels.apply(values, gain, scale, start, axis, low, high)  # type: ignore[no-untyped-call]
    return rounded


def moved_ends(minimum: Tensor, maximum: Tensor, gain: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """The two ends of a learned range, each of the shape of `minimum`, without gradient.

    Args:
        minimum: the lower end when learning began, a scalar.
        maximum: the upper end then.
        gain: the scale over its start, shape (1,).
        shift: move of the lower end in widths of the range at the start, shape (1,); None for a range that is only
            scaled.

    >>> low, high = torch.tensor(-1.0), torch.tensor(3.0)
    >>> moved_ends(low, high, torch.tensor([1.5]), torch.tensor([-0.25]))  # from -1 - 4/4, 1.5 * 4 wide
    (tensor(-2.), tensor(4.))
    """
    gain = scaled(torch.ones_like(gain), gain.detach())
    if shift is None:
        return (minimum * gain).view_as(minimum), (maximum * gain).view_as(maximum)
    width, shift = maximum - minimum, shift.detach()
    return (minimum + width * shift).view_as(minimum), (maximum + width * (shift + gain - 1.0)).view_as(maximum)


def scaled(start: Tensor, gain: Tensor) -> Tensor:
    """Learned scales: those at the start times the gain, which is held positive."""
    return start * gain.clamp(min=SMALLEST_GAIN)


class _Tensor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float, inverse: float, low: int, high: int) -> Tensor:
        ctx.save_for_backward(values)
        # half a code beyond the ends still rounds to a code
        ctx.bounds = (low - 0.5) * scale, (high + 0.5) * scale
        return values.mul(inverse).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (values,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, values, *ctx.bounds), None, None, None, None


class _Channels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        return values.mul(scale.reciprocal()).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, None, None


class _LearnedTensor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, gain: Tensor, shift: Tensor | None, used: Range) -> Tensor:
        low, high = used.low - used.zero_point, used.high - used.zero_point
        scale = torch.tensor(used.scale)
        rounded = values.mul(float(scale.reciprocal())).round_().clamp_(low, high).mul_(used.scale)
        ctx.save_for_backward(values, rounded)
        ctx.used, ctx.ends, ctx.with_shift = used, (low * used.scale, high * used.scale), shift is not None
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, rounded = ctx.saved_tensors
        used, (low, high) = ctx.used, ctx.ends
        inside, of_scale = _gradients(gradient, values, rounded, low, high)  # equations 5 and 3
        weight = gradient_scale(values[0].numel(), used.top) / used.start
        if not ctx.with_shift:
            return inside, of_scale.mul(weight / used.scale).view(1), None, None
        # with an offset the lower end stays where that is, and the upper end is Q_P codes away from it
        clipped = gradient.sum() - inside.sum()
        of_scale = of_scale - low * clipped
        return inside, of_scale.mul(weight / used.scale).view(1), clipped.mul(weight * used.top).view(1), None


class _LearnedChannels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, gain: Tensor | None, scale: Tensor, start: Tensor, axis: int, low: int, high: int
    ) -> Tensor:
        scale = _along(scale, values, axis)
        ctx.save_for_backward(values, scale, start)
        ctx.axis, ctx.low, ctx.high = axis, low, high
        return values.mul(scale.reciprocal()).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, start = ctx.saved_tensors
        steps = values * scale.reciprocal()
        inside = torch.ops.aten.hardtanh_backward(gradient, steps, ctx.low, ctx.high)
        if not ctx.needs_input_grad[1]:
            return inside, None, None, None, None, None, None
        codes = steps.round().clamp_(ctx.low, ctx.high)
        of_scale = inside * (codes - steps) + (gradient - inside) * codes
        of_scale = of_scale.sum([axis for axis in range(values.ndim) if axis != ctx.axis])
        weight = gradient_scale(values.numel() // len(start), ctx.high)
        return inside, of_scale.mul(weight) / start, None, None, None, None, None


def gradient_scale(count: int, top: int) -> float:
    """1 / sqrt(N Q_P): a scale then moves, relative to itself, about as fast as a weight."""
    return 1.0 / math.sqrt(max(count, 1) * top)


def _gradients(gradient: Tensor, values: Tensor, rounded: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The derivative by the values, and that by the scale, times the scale.

    The first is the gradient inside [low, high] and 0 outside; the second the gradient times rounded - v inside and
    times rounded outside, summed. Both are made piece by piece: what fits the cache is read from memory once.
    """
    dense = gradient.is_contiguous() or gradient.is_contiguous(memory_format=torch.channels_last)
    if not (dense and values.stride() == rounded.stride() == gradient.stride()):
        gradient, values, rounded = gradient.contiguous(), values.contiguous(), rounded.contiguous()
    found = torch.empty_like(gradient)
    total = torch.zeros((), dtype=gradient.dtype, device=gradient.device)
    flat = [one.as_strided((one.numel(),), (1,)) for one in (gradient, values, rounded, found)]
    for upstream, value, code, inside in zip(*(torch.split(one, _PIECE) for one in flat), strict=True):
        torch.ops.aten.hardtanh_backward.grad_input(upstream, value, low, high, grad_input=inside)
        # g (rounded - v) inside and g rounded outside are g rounded less what passed times v
        total += torch.dot(upstream, code) - torch.dot(inside, value)
    return found, total


def _along(scale: Tensor, values: Tensor, axis: int) -> Tensor:
    """Per-channel numbers in the shape that broadcasts over `values`."""
    shape = [1] * values.ndim
    shape[axis] = -1
    return scale.view(shape)
