"""Small Q/DQ graphs for the tests of the TensorRT target, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 8
ZERO = np.int8(0)
SHAPE = ("B", CHANNELS, 8, 8)


class Graph:
    """Collects nodes and constants; every method gives the name of the tensor it made."""

    def __init__(self, opset: int = 18) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def constant(self, values: Any) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def pair(self, x: str, *, scale: float = 0.03, zero: Any = ZERO) -> str:
        """A per-tensor Q/DQ pair on an activation."""
        shared = (self.constant(np.float32(scale)), self.constant(zero))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *shared), *shared)

    def weights(self, *shape: int, axis: int = 0, scale: float = 0.01) -> str:
        """int8 weights with one scale a channel of `axis`."""
        codes = self.constant(self.rng.integers(-127, 128, shape).astype(np.int8))
        scales = self.constant((scale * self.rng.uniform(0.5, 1.0, shape[axis])).astype(np.float32))
        return self.node("DequantizeLinear", codes, scales, self.constant(np.zeros(shape[axis], np.int8)), axis=axis)

    def bias(self, size: int) -> str:
        return self.constant(self.rng.normal(size=size).astype(np.float32))

    def conv(self, x: str, *, group: int = 1, scale: float = 0.01, bias: str | None = None) -> str:
        """A 3x3 convolution of an activation that is already dequantized."""
        weights = self.weights(CHANNELS, CHANNELS // group, 3, 3, scale=scale)
        bias = bias or self.bias(CHANNELS)
        return self.node("Conv", x, weights, bias, kernel_shape=[3, 3], pads=[1] * 4, group=group)

    def model(self, output: str, *, shape: Sequence[int | str] = SHAPE) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [onnx.ValueInfoProto(name=output)],
            self.tensors,
        )
        graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        opset = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


def residual_net(*, opset: int = 18) -> onnx.ModelProto:
    """Conv-ReLU6, depthwise conv, residual add with the pair on the skip, max-pool, global pool, classifier."""
    graph = Graph(opset)
    skip = graph.pair("x")
    y = graph.node("Clip", graph.conv(skip), graph.constant(np.float32(0)), graph.constant(np.float32(6)))
    y = graph.conv(graph.pair(y), group=CHANNELS)
    y = graph.node("Relu", graph.node("Add", y, skip))
    y = graph.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = graph.node("Flatten", graph.node("GlobalAveragePool", y))
    y = graph.node("Gemm", graph.pair(y), graph.weights(10, CHANNELS), graph.bias(10), transB=1)
    return graph.model(y)


def float_net() -> onnx.ModelProto:
    """One convolution and ReLU without any pair."""
    graph = Graph()
    weights = graph.constant(graph.rng.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32))
    y = graph.node("Conv", "x", weights, graph.bias(CHANNELS), kernel_shape=[3, 3], pads=[1] * 4)
    return graph.model(graph.node("Relu", y))
