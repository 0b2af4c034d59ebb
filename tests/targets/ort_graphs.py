"""Small Q/DQ graphs for the tests of the ONNX Runtime audit, written node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

C = 8
H = 6


class QdqGraph:
    """Builds a Q/DQ model; every method gives the name of the tensor it makes.

    The input "x" has shape (B, 8, 6, 6).
    """

    def __init__(self, *, opset: int = 20) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.opset = opset
        self._rng = np.random.default_rng(0)

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"node_{output}", **attributes))
        return output

    def pair(self, name: str, *, scale: Any = 0.05, zero: Any = 0, dtype: str = "uint8") -> str:
        """A Q/DQ pair on `name`."""
        self.constant(f"{name}_scale", np.asarray(scale, np.float32))
        self.constant(f"{name}_zero", np.asarray(zero, dtype))
        axis = {"axis": 1} if np.ndim(scale) else {}
        self.op("QuantizeLinear", [name, f"{name}_scale", f"{name}_zero"], f"{name}_q", **axis)
        return self.op("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], f"{name}_dq", **axis)

    def stored(
        self, name: str, shape: Sequence[int], *, dtype: str = "int8", scale: float = 0.01, zero: Any = 0
    ) -> str:
        """A constant kept as integers behind a DQ, one scale per entry of axis 0."""
        codes = self._rng.integers(1 if dtype == "uint8" else -127, 127, shape)
        self.constant(f"{name}_q", codes.astype(dtype))
        self.constant(f"{name}_scale", np.full(shape[0], scale, np.float32))
        self.constant(f"{name}_zero", np.broadcast_to(np.asarray(zero, dtype), (shape[0],)))
        return self.op("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], name, axis=0)

    def real(self, name: str, shape: Sequence[int]) -> str:
        """A float constant."""
        return self.constant(name, self._rng.standard_normal(shape).astype(np.float32))

    def conv(self, source: str, output: str, *, weight: str | None = None, bias: str | None = None) -> str:
        weight = weight or self.stored(f"{output}_weight", (C, C, 3, 3))
        bias = bias or self.stored(f"{output}_bias", (C,), dtype="int32", scale=0.0005)
        return self.op("Conv", [source, weight, bias], output, pads=[1, 1, 1, 1])

    def gemm(self, source: str, output: str, *, features: int, bias: str | None = None) -> str:
        weight = self.stored(f"{output}_weight", (4, features))
        bias = bias or self.stored(f"{output}_bias", (4,), dtype="int32", scale=0.0005)
        return self.op("Gemm", [source, weight, bias], output, transB=1)

    def model(self, *outputs: str, shape: Sequence[int | str] = ("B", C, H, H)) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model)  # the checker wants a shape on every output
        onnx.checker.check_model(model)
        return model


def residual_network(*, dtype: str = "uint8", zero: int = 0) -> onnx.ModelProto:
    """Conv-ReLU, conv, add with the skip, ReLU, max pool, global pool, flatten, classifier; 8 operators."""
    graph = QdqGraph()
    options: dict[str, Any] = {"dtype": dtype, "zero": zero}
    first = graph.pair(graph.op("Relu", [graph.conv(graph.pair("x", **options), "c1")], "r1"), **options)
    second = graph.pair(graph.conv(first, "c2"), **options)
    added = graph.pair(graph.op("Relu", [graph.op("Add", [second, first], "a")], "ra"), **options)
    pooled = graph.pair(graph.op("MaxPool", [added], "m", kernel_shape=[2, 2], strides=[2, 2]), **options)
    mean = graph.pair(graph.op("GlobalAveragePool", [pooled], "g"), **options)
    flat = graph.pair(graph.op("Flatten", [mean], "f"), **options)
    return graph.model(graph.pair(graph.gemm(flat, "y", features=C), **options))
