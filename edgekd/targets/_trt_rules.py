"""What TensorRT does not take in a Q/DQ graph, found in the file itself and said in words.

TensorRT's own parser names an assertion; here each case has its cause and its remedy, and the one that the parser
accepts with a wrong result (uint8 with zero-point 0) is a refusal too. No TensorRT is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgekd.targets._base import Island

__all__ = ["refusals"]

_INTEGER_OPS = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"})
_REMEDY = "Quantize for the target tensorrt"
_PASS = frozenset(
    {"DequantizeLinear", "QuantizeLinear", "Reshape", "Transpose", "Flatten", "MaxPool", "Squeeze", "Cast"}
)


def refusals(model: onnx.ModelProto) -> list[Island]:
    """The Q/DQ nodes that TensorRT refuses or misreads, each with the operator it feeds.

    Args:
        model: with its initializers loaded.

    Returns:
        one entry a node, named after the weighted operator that the node feeds when there is one.
    """
    constants = _constants(model.graph)
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    found = []
    refused: set[str] = set()  # tensors made by a refused node: its DQ has the same fault and is not told again
    for node in model.graph.node:
        cause = _cause(node, constants)
        if cause and refused.isdisjoint(node.input):
            refused.update(node.output)
            served = _served(node, consumers)
            found.append(
                Island(name=served.name or served.output[0], op=served.op_type, cause=cause[0], remedy=cause[1])
            )
    return list(dict.fromkeys(found))


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    return found


def _cause(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> tuple[str, str] | None:
    """(cause, remedy) of a node that TensorRT cannot take, or None."""
    name = node.name or node.output[0]
    if node.op_type in _INTEGER_OPS or node.domain == "com.microsoft":
        return f"'{name}' is {node.op_type}, and TensorRT reads int8 only from Q/DQ pairs", f"{_REMEDY}, in QDQ format."
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    codes = constants.get(node.input[0])
    if codes is not None and codes.data_type == TensorProto.INT32:
        return (
            f"the int32 bias of '{name}'; TensorRT adds its bias in float",
            f"{_REMEDY}, which leaves the bias float.",
        )
    return _grid_cause(name, node, constants)


def _grid_cause(name: str, node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> tuple[str, str] | None:
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    codes = constants.get(node.input[0])
    unsigned = zero.data_type == TensorProto.UINT8 if zero is not None else node.op_type == "QuantizeLinear"
    if codes is not None and node.op_type == "DequantizeLinear":
        unsigned = codes.data_type == TensorProto.UINT8
    if unsigned and _output_dtype(node) != TensorProto.INT8:
        # with zero-point 0 the parser only warns and clips codes above 127, half of the range
        return f"'{name}' has uint8 codes; TensorRT has signed int8 only", f"{_REMEDY}: symmetric int8."
    if zero is not None and (value := numpy_helper.to_array(zero)).any():
        worst = int(value.flat[int(np.abs(value.astype(np.int64)).argmax())])
        return f"'{name}' has zero-point {worst}; TensorRT takes only 0", f"{_REMEDY}: symmetric int8."
    scale = constants.get(node.input[1])
    if scale is not None:
        values = numpy_helper.to_array(scale).astype(np.float64)
        if not (np.isfinite(values).all() and (values > 0).all()):
            bad = float(values[~(np.isfinite(values) & (values > 0))].flat[0])
            return f"'{name}' has scale {bad}; every scale must be finite and > 0", "Calibrate again with real data."
    return None


def _output_dtype(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "output_dtype"), 0)


def _served(node: onnx.NodeProto, consumers: Mapping[str, list[onnx.NodeProto]]) -> onnx.NodeProto:
    """The first operator downstream that computes, or the node itself."""
    current = node
    while current.op_type in _PASS:
        following = [other for name in current.output for other in consumers.get(name, [])]
        if not following:
            return node
        current = following[0]
    return current
