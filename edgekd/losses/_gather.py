"""Look at the whole batch when several processes share it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgekd import _group
from edgekd._messages import stacked, summed

__all__ = ["gathered"]


def gathered(values: Tensor) -> Tensor:
    """The rows of every process, in the processes' order; the same tensor when there is one process.

    The gradient flows back to the process that a row came from. Each process computes the same value of the whole
    batch, and the wrapper that averages gradients over processes then gives that value's gradient.

    Args:
        values: shape (B, ...); B may differ from process to process.
    """
    if _group.count() == 1:
        return values
    sizes = stacked(torch.tensor(len(values), device=values.device)).tolist()
    padded = torch.cat([values, values.new_zeros(max(sizes) - len(values), *values.shape[1:])])
    parts = _AllGather.apply(padded.contiguous())  # type: ignore[no-untyped-call]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _AllGather(torch.autograd.Function):
    """Every process's tensor, stacked; backward, the sum of what each process sends back to this one's."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return stacked(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return summed(gradients[0].clone())[_group.index()]
