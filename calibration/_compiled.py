"""The same rounding for torch.compile: operators that it fuses with their neighbours, and no number read by Python.

What a grid's numbers are made of must not be fused: it would be computed anew for every few values of the loop that
uses it, at twice the price of a whole training step.

Reference: see `_rounding`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["learned", "once", "rounded"]


@torch.library.custom_op("edgekd::once", mutates_args=())
def once(numbers: Tensor) -> Tensor:
    """The same numbers, computed before the loop that uses them and not inside it.

    Args:
        numbers: few, any shape, without gradient.
    """
    return numbers.clone()


@once.register_fake
def _(numbers: Tensor) -> Tensor:
    return torch.empty_like(numbers)


@torch.library.custom_op("edgekd::after", mutates_args=())
def after(numbers: Tensor, cause: Tensor) -> Tensor:
    """The same numbers, but not before another tensor is there.

    A mask of what was clipped is the smallest thing to keep for the backward pass, so it would be made in the forward
    pass; where memory takes bytes and the processor computes in words, storing it costs more than all else here.

    Args:
        numbers: few, any shape, without gradient.
        cause: anything, without gradient.
    """
    return numbers.clone()


@after.register_fake
def _(numbers: Tensor, cause: Tensor) -> Tensor:
    return torch.empty_like(numbers)


def rounded(values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """`rounded_tensor` of `_rounding`, with the same result and gradient."""
    # half a code beyond the ends still rounds to a code
    found: Tensor = _Rounded.apply(values, _numbers(scale, zero_point, low, high, beyond=0.5))  # type: ignore[no-untyped-call]
    return found


def learned(
    values: Tensor,
    gain: Tensor,
    shift: Tensor | None,
    grid: tuple[Tensor, Tensor],
    codes: tuple[int, int],
    weight: Tensor,
    top: int,
) -> Tensor:
    """`learned_tensor` of `_rounding`, with the same result and gradient.

    Args:
        values: float32, batch first.
        gain: the scale over its start, shape (1,).
        shift: see there.
        grid: scale and zero-point as they are used, scalars.
        codes: lowest and highest.
        weight: the gradient scale over the scale at the start, a scalar.
        top: Q_P of the paper.
    """
    numbers = _numbers(*grid, *codes, beyond=0.0)
    found: Tensor = _Learned.apply(values, gain, shift, numbers, once(weight), top)  # type: ignore[no-untyped-call]
    return found


def _numbers(scale: Tensor, zero_point: Tensor, low: int, high: int, *, beyond: float) -> Tensor:
    """Scale, its inverse, lowest and highest code less the zero-point, and the values beyond which none passes."""
    lowest, highest = (low - zero_point).to(scale.dtype), (high - zero_point).to(scale.dtype)
    ends = [(lowest - beyond) * scale, (highest + beyond) * scale]
    found: Tensor = once(torch.stack([scale, scale.reciprocal(), lowest, highest, *ends]))
    return found


def _codes(values: Tensor, numbers: Tensor) -> Tensor:
    return values.mul(numbers[1]).round().clamp(numbers[2], numbers[3]).mul(numbers[0])


def _passed(gradient: Tensor, values: Tensor, numbers: Tensor) -> Tensor:
    numbers = after(numbers, gradient[(0,) * gradient.ndim])
    return torch.where((values > numbers[4]) & (values < numbers[5]), gradient, 0.0)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, numbers: Tensor) -> Tensor:
        ctx.save_for_backward(values, numbers)
        return _codes(values, numbers)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _passed(gradient, *ctx.saved_tensors), None


class _Learned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, gain: Tensor, shift: Tensor | None, numbers: Tensor, weight: Tensor, top: int
    ) -> Tensor:
        found = _codes(values, numbers)
        ctx.save_for_backward(values, found, numbers, weight)
        ctx.top, ctx.with_shift = top, shift is not None
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, found, numbers, weight = ctx.saved_tensors
        inside = _passed(gradient, values, numbers)  # equations 5 and 3, as in `_rounding`
        of_scale = (gradient * found - inside * values).sum()
        if not ctx.with_shift:
            return inside, (of_scale * weight / numbers[0]).view(1), None, None, None, None
        clipped = (gradient - inside).sum()
        of_scale = of_scale - numbers[4] * clipped
        of_shift = (clipped * weight * ctx.top).view(1)
        return inside, (of_scale * weight / numbers[0]).view(1), of_shift, None, None, None
