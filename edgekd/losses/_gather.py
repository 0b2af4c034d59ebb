"""Look at the whole batch when several processes share it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor

__all__ = ["gathered"]


def gathered(values: Tensor) -> Tensor:
    """The rows of every process, in the processes' order; the same tensor when there is one process.

    The gradient flows back to the process that a row came from. Each process computes the same value of the whole
    batch, and the wrapper that averages gradients over processes then gives that value's gradient.

    Args:
        values: shape (B, ...); B may differ from process to process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    if torch.distributed.get_world_size() == 1:
        return values
    counts = [
        torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(torch.distributed.get_world_size())
    ]
    torch.distributed.all_gather(counts, torch.tensor([len(values)], device=values.device))
    sizes = [int(count) for count in counts]
    padded = torch.cat([values, values.new_zeros(max(sizes) - len(values), *values.shape[1:])])
    parts = _AllGather.apply(padded.contiguous())  # type: ignore[no-untyped-call]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _AllGather(torch.autograd.Function):
    """Every process's tensor, stacked; backward, the sum of what each process sends back to this one's."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, values)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        torch.distributed.all_reduce(total)
        return total[torch.distributed.get_rank()]
