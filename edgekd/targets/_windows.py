"""What a weighted operator of an ONNX graph reads on the average at each place of its kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from onnx import NodeProto

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
        summed = data.sum(axis=0, dtype=np.float64)
        starts, ends = self._padding(summed.shape[1:])
        padded = np.pad(summed, [(0, 0), *zip(starts, ends, strict=True)])
        sizes = [
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                padded.shape[1:], self.kernel, self.strides, self.dilations, strict=True
            )
        ]
        places = [padded[(slice(None), *at)].reshape(len(padded), -1).mean(axis=1) for at in self._places(sizes)]
        return np.stack(places, axis=1).reshape(len(padded), *self.kernel)

    def _places(self, sizes: list[int]) -> Iterator[tuple[slice, ...]]:
        """For each place of the kernel, what is read there over all positions."""
        for place in product(*map(range, self.kernel)):
            yield tuple(
                slice(at * dilation, at * dilation + (size - 1) * stride + 1, stride)
                for at, dilation, stride, size in zip(place, self.dilations, self.strides, sizes, strict=True)
            )

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
