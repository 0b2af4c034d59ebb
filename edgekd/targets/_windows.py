"""What a weighted operator of an ONNX graph reads on the average at each place of its kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor

__all__ = ["Window"]


@dataclass(frozen=True)
class Window:
    """Where an operator reads its data.

    Args:
        tensor: the data's name.
        kernel: sizes of a convolution's kernel; empty for a linear layer, which reads the last axis.
        strides: of the convolution, one a dimension.
        dilations: likewise.
        pads: at the beginning of each dimension, then at the end of each; None where `same` says it.
        same: the attribute `auto_pad`, if it is SAME_UPPER or SAME_LOWER.
    """

    tensor: str
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] | None = None
    same: str = ""

    @classmethod
    def of(cls, node: NodeProto, kernel: tuple[int, ...]) -> Window:
        """Of an operator whose weight has this kernel; empty for a linear layer."""
        if not kernel:
            return cls(node.input[0])
        given = {one.name: tuple(one.ints) for one in node.attribute if one.ints}
        auto = next((one.s.decode() for one in node.attribute if one.name == "auto_pad"), "NOTSET")
        ones = (1,) * len(kernel)
        return cls(
            node.input[0],
            kernel,
            given.get("strides", ones),
            given.get("dilations", ones),
            None if auto.startswith("SAME") else given.get("pads", (0,) * (2 * len(kernel))),
            auto if auto.startswith("SAME") else "",
        )

    def total(self, data: np.ndarray) -> np.ndarray:
        """The sum over samples of what is read on the average, padding included.

        Args:
            data: float, samples first: (B, C, ...) of a convolution, (B, ..., C) of a linear layer.

        Returns:
            float64, shape (C, kernel...), or (C,).
        """
        if not self.kernel:
            rows = data.reshape(len(data), -1, data.shape[-1])
            means: np.ndarray = rows.mean(axis=1).sum(axis=0, dtype=np.float64)
            return means
        sizes = data.shape[2:]
        along = zip(sizes, self.kernel, self.strides, self.dilations, *self._padding(sizes), strict=True)
        # products by torch: its threads are those that were asked for
        found = torch.from_numpy(data[0] if len(data) == 1 else data.sum(axis=0))
        # the last axis first: what is left for the others is small
        for axis, numbers in reversed(list(enumerate(along, start=1))):
            found = (found.movedim(axis, -1) @ _reads(*numbers)).movedim(-1, axis)
        return found.numpy().astype(np.float64)

    def _padding(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(at the beginning, at the end) of each dimension."""
        count = len(self.kernel)
        if self.pads is not None:
            return self.pads[:count], self.pads[count:]
        wanted = [
            max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
            for size, kernel, stride, dilation in zip(sizes, self.kernel, self.strides, self.dilations, strict=True)
        ]
        less, more = tuple(one // 2 for one in wanted), tuple(one - one // 2 for one in wanted)
        return (less, more) if self.same == "SAME_UPPER" else (more, less)


@lru_cache(maxsize=256)
def _reads(size: int, kernel: int, stride: int, dilation: int, start: int, end: int) -> Tensor:
    """Along one axis, how often each place of the kernel reads each position, over the count of outputs.

    Returns:
        float32, shape (size, kernel); padding has no row.
    """
    outputs = (size + start + end - dilation * (kernel - 1) - 1) // stride + 1
    found = np.zeros((size, kernel), np.float32)
    for place in range(kernel):
        positions = np.arange(outputs) * stride + place * dilation - start
        found[positions[(positions >= 0) & (positions < size)], place] = 1.0 / outputs
    return torch.from_numpy(found)
