"""An ONNX graph as a reader of its quantization sees it: who makes a tensor, who takes it, which ones are constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["ABSORBED", "PASS_THROUGH", "GraphView", "QParams"]

ABSORBED = frozenset({"Relu", "Clip"})
"""Activations that disappear into the Q behind them."""

PASS_THROUGH = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"})
"""Operators that only move values, so that 8-bit codes go through them unchanged."""


@dataclass(frozen=True)
class QParams:
    """Grid of one Q or DQ: element type, scale and zero-point."""

    dtype: str
    scale: np.ndarray
    zero_point: np.ndarray

    @property
    def lowest_code(self) -> int:
        """The smallest code of the element type."""
        return int(np.iinfo(self.dtype).min)

    @property
    def real_range(self) -> tuple[float, float]:
        """The smallest and the largest real value on the grid."""
        info = np.iinfo(self.dtype)
        codes = np.array([info.min, info.max]).reshape(2, *[1] * self.scale.ndim)
        values = (codes - self.zero_point.astype(np.int64)) * self.scale
        return float(values.min()), float(values.max())

    def same_as(self, other: QParams) -> bool:
        """Whether codes mean the same on both grids."""
        return (
            self.dtype == other.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


class GraphView:
    """Index of a model's main graph.

    Args:
        model: the model, with its tensors loaded.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.graph_inputs = {value.name for value in graph.input}
        self.graph_outputs = {value.name for value in graph.output}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                if name:
                    self._consumers.setdefault(name, []).append(node)
        self._constant = set(self._initializers)
        for node in self.nodes:
            # the checker has made sure that nodes come in topological order
            if all(name in self._constant for name in node.input if name):
                self._constant.update(node.output)

    @property
    def has_quantizers(self) -> bool:
        """Whether there is any Q, DQ or operator on 8-bit tensors."""
        return any(
            node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
            or node.op_type.startswith(("QLinear", "QGemm"))
            or node.op_type in ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat")
            for node in self.nodes
        )

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, or None for inputs and stored constants."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that take a tensor, each once."""
        return self._consumers.get(tensor, [])

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is stored, or computed from stored tensors only."""
        return tensor in self._constant

    def is_foldable(self, node: onnx.NodeProto) -> bool:
        """Whether a node has constant inputs only, so that it is computed at load."""
        return all(self.is_constant(name) for name in node.input if name)

    def dequantizer(self, tensor: str) -> onnx.NodeProto | None:
        """The DQ that makes a tensor, or None if another node does."""
        node = self.producer(tensor)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def constant(self, tensor: str) -> np.ndarray | None:
        """The value of a stored constant, or None."""
        if tensor in self._initializers:
            return numpy_helper.to_array(self._initializers[tensor])
        node = self.producer(tensor)
        if node is not None and node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    return numpy_helper.to_array(attribute.t)
        return None

    def qparams(self, node: onnx.NodeProto) -> QParams | None:
        """The grid of a Q or DQ, or None when it is computed at run time."""
        scale = self.constant(node.input[1])
        stored = self.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros((), np.uint8)
        if scale is None or stored is None or not np.issubdtype(stored.dtype, np.integer):
            return None
        return QParams(str(stored.dtype), scale, stored)

    def data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The inputs that carry data, not parameters such as shapes, axes or weights."""
        if node.op_type in ("Add", "Mul", "MatMul", "Concat"):
            return [name for name in node.input if name]
        return list(node.input[:1])

    def upstream(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Every node that a node depends on."""
        yield from self._walk(node, lambda one: [made for name in one.input if (made := self.producer(name))])

    def downstream(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Every node that depends on a node."""
        yield from self._walk(node, lambda one: [user for name in one.output for user in self.consumers(name)])

    def _walk(
        self, node: onnx.NodeProto, step: Callable[[onnx.NodeProto], list[onnx.NodeProto]]
    ) -> Iterator[onnx.NodeProto]:
        waiting = step(node)
        seen: set[int] = set()
        while waiting:
            one = waiting.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            yield one
            waiting += step(one)
