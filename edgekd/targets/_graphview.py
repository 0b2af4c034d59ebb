"""An ONNX graph as a reader of its quantization sees it: who makes a tensor, who takes it, which ones are constant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from edgekd.targets._kernels import ABSORBED, MOVES, is_int8_operator

__all__ = ["ABSORBED", "PASS_THROUGH", "GraphView", "QParams", "inner_graphs", "unique_labels"]

PASS_THROUGH = MOVES
"""Operators that only move values, so that 8-bit codes go through them unchanged."""

_LISTS = ("value_ints", "value_floats")
_SCALARS = ("value_int", "value_float")


@dataclass(frozen=True)
class QParams:
    """Grid of one Q or DQ: element type, scale and zero-point.

    Args:
        dtype: of the codes, "uint8"; other than integers only where somebody chose such codes, "float8e4m3fn".
        scale: one value, one a channel, or a block of them.
        zero_point: of the same shape; 0 where the file leaves it out.
        axis: of the channels.
    """

    dtype: str
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int = 1

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
    """Index of one graph: a model's main graph, or the body of a control-flow operator.

    Args:
        model: the model, with its tensors loaded.
        graph: the body; the main graph unless given.
        outer: the view of the graph around the body, whose tensors it may read.
        owner: the control-flow operator that the body belongs to.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        graph: onnx.GraphProto | None = None,
        *,
        outer: GraphView | None = None,
        owner: onnx.NodeProto | None = None,
    ) -> None:
        graph = model.graph if graph is None else graph
        self.graph = graph
        self.outer = outer
        self.owner = owner
        self.nodes = list(graph.node)
        self.graph_inputs = {value.name for value in graph.input}
        self.graph_outputs = {value.name for value in graph.output}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.input, *_captured(node))):
                if name:
                    self._consumers.setdefault(name, []).append(node)
        self._constant = set(self._initializers)
        for node in self.nodes:
            # the checker has made sure that nodes come in topological order
            if all(self.is_constant(name) for name in (*node.input, *_captured(node)) if name):
                self._constant.update(node.output)

    @classmethod
    def all_of(cls, model: onnx.ModelProto) -> list[GraphView]:
        """Views of the main graph and, behind it, of every body inside, at any depth."""
        found = [cls(model)]
        for view in found:  # grows while it is walked
            for node in view.nodes:
                found += [cls(model, body, outer=view, owner=node) for body in inner_graphs(node)]
        return found

    @property
    def has_quantizers(self) -> bool:
        """Whether there is any Q, DQ or operator on 8-bit tensors, here or in a body."""
        return _any_node(self.graph, is_int8_operator)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node of this graph that makes a tensor, or None for inputs, constants and tensors of an outer graph."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that take a tensor, each once; a control-flow operator takes what its bodies read."""
        return self._consumers.get(tensor, [])

    def comes_from_outside(self, tensor: str) -> bool:
        """Whether a body reads a tensor that a graph around it computes."""
        return (
            self.outer is not None
            and tensor not in self._producers
            and tensor not in self.graph_inputs
            and tensor not in self._initializers
        )

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor is stored, or computed from stored tensors only."""
        if tensor in self._constant:
            return True
        return self.outer is not None and self.comes_from_outside(tensor) and self.outer.is_constant(tensor)

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
            return _constant_value(node)
        return self.outer.constant(tensor) if self.outer is not None and self.comes_from_outside(tensor) else None

    def qparams(self, node: onnx.NodeProto) -> QParams | None:
        """The grid of a Q or DQ, or None when it is computed at run time."""
        scale = self.constant(node.input[1])
        named = len(node.input) > 2 and node.input[2]
        zero = self.constant(node.input[2]) if named else None
        if scale is None or (named and zero is None):
            return None
        dtype = str(zero.dtype) if zero is not None else self._code_type(node)
        axis = int(attribute(node, "axis", 1))
        return QParams(dtype, scale, np.zeros_like(scale, np.int64) if zero is None else zero, axis)

    def data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The inputs that carry data, not parameters such as shapes, axes or weights."""
        if node.op_type in ("Add", "Mul", "MatMul", "Concat"):
            return [name for name in node.input if name]
        if node.op_type == "Where":
            return list(node.input[1:])
        return list(node.input[:1])

    def upstream(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Every node that a node depends on."""
        yield from self._walk(node, lambda one: [made for name in one.input if (made := self.producer(name))])

    def downstream(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Every node that depends on a node."""
        yield from self._walk(node, lambda one: [user for name in one.output for user in self.consumers(name)])

    def _code_type(self, node: onnx.NodeProto) -> str:
        """Element type of the codes of a Q or DQ without a zero-point."""
        if node.op_type == "DequantizeLinear":
            codes = self.constant(node.input[0])
            return str(codes.dtype) if codes is not None else "uint8"
        chosen = int(attribute(node, "output_dtype", 0))
        return onnx.TensorProto.DataType.Name(chosen).lower() if chosen else "uint8"

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


def inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of a control-flow operator; none of any other."""
    found = [one.g for one in node.attribute if one.type == onnx.AttributeProto.GRAPH]
    return found + [graph for one in node.attribute for graph in one.graphs]


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """A number that a node has as an attribute, or its default."""
    for one in node.attribute:
        if one.name == name:
            return float(one.f) if one.type == onnx.AttributeProto.FLOAT else int(one.i)
    return default


def unique_labels(views: list[GraphView]) -> list[str]:
    """What each node is called, in the order of the views: its name, or what it makes where a name is not unique."""
    nodes = [node for view in views for node in view.nodes]
    taken = Counter(node.name for node in nodes)
    made = (next((name for name in node.output if name), node.op_type) for node in nodes)
    return [
        node.name if node.name and taken[node.name] == 1 else output for node, output in zip(nodes, made, strict=True)
    ]


def _captured(node: onnx.NodeProto) -> list[str]:
    """The tensors that the bodies of a node read from the graphs around them."""
    found: list[str] = []
    for body in inner_graphs(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own.update(name for inner in body.node for name in inner.output)
        read = [name for inner in body.node for name in (*inner.input, *_captured(inner))]
        read += [value.name for value in body.output]
        found += [name for name in read if name and name not in own]
    return found


def _any_node(graph: onnx.GraphProto, wanted: Callable[[onnx.NodeProto], bool]) -> bool:
    return any(wanted(node) or any(_any_node(body, wanted) for body in inner_graphs(node)) for node in graph.node)


def _constant_value(node: onnx.NodeProto) -> np.ndarray | None:
    for one in node.attribute:
        if one.name == "value":
            return numpy_helper.to_array(one.t)
        if one.name in _LISTS:
            return np.array(one.ints or one.floats, np.int64 if one.name == "value_ints" else np.float32)
        if one.name in _SCALARS:
            return np.array(one.i) if one.name == "value_int" else np.array(one.f, np.float32)
    return None
