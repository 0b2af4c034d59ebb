"""Float32 for a loss whose gradient may not fit into the precision of what it looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from edgekd.losses._base import float32

__all__ = ["widened"]


def widened(values: Tensor) -> Tensor:
    """The values in float32, with a gradient that is held within the largest number of their own precision.

    A gradient that grows with a power of the features, or with one over their variance, would come back to float16 as
    infinity.
    """
    wide = float32(values)
    if wide.requires_grad and values.dtype != wide.dtype:
        largest = torch.finfo(values.dtype).max
        wide.register_hook(lambda gradient: gradient.clamp(-largest, largest))  # type: ignore[no-untyped-call]
    return wide
