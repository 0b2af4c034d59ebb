"""Why OpenVINO's CPU plugin leaves an operator in float, and what to change.

Each rule was found in the runtime's behaviour on a small graph (2026.4.1); the tests build those graphs again. The
plugin is tolerant: any zero-point, any bias, activations without a Q, and reductions all run as int8. What it asks for
are codes on the data input and symmetric int8 weights. The first rule that applies is the cause.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from edgekd.targets._base import Island
from edgekd.targets._graphview import GraphView, QParams
from edgekd.targets._kernels import BOUNDARIES, CARRIED, WEIGHTED

__all__ = ["island_of"]

_Finding = tuple[str, str]
_EIGHT_BIT = ("uint8", "int8")
_UNEXPLAINED = (
    "no rule of the audit explains it: its inputs come as codes and OpenVINO computed it in float",
    "compare it with an operator of the same type that runs as int8, or leave it out of quantization",
)


def island_of(view: GraphView, node: onnx.NodeProto, label: str) -> Island:
    """Name the cause and the remedy of a float operator.

    Args:
        view: the file as it is.
        node: the operator.
        label: what reports call it.
    """
    found = next((one for rule in _RULES if (one := rule(view, node)) is not None), _UNEXPLAINED)
    return Island(label, node.op_type, *found)


def _file_without_quantizers(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    if view.has_quantizers:
        return None
    return "the file has no Q/DQ nodes", "quantize the model before exporting it (edgekd quantize)"


def _integer_operator(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    if not node.op_type.endswith("Integer"):
        return None
    return f"OpenVINO computes {node.op_type} in float", "write it as Q/DQ pairs around the float operator"


def _float_input(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    """Data that arrives in float; through moves of values codes go unchanged."""
    for name in view.data_inputs(node)[: 1 if node.op_type in WEIGHTED else None]:
        source = _behind_moves(view, name)
        made = view.producer(source)
        if made is not None and made.op_type == "DequantizeLinear":
            continue
        if made is None or view.is_constant(source):
            kind = "constant" if view.is_constant(source) else "model input"
            return f"its input '{name}' is a float {kind}", f"put a Q/DQ pair on '{name}'"
        where = f"{made.op_type} '{made.name or made.output[0]}'"
        return f"its input '{name}' comes in float from {where}", f"put a Q/DQ pair on '{name}'"
    return None


def _dynamic(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    for name in view.data_inputs(node):
        dequantize = view.dequantizer(_behind_moves(view, name))
        if dequantize is not None and view.qparams(dequantize) is None:
            return (
                f"the scale or zero-point of its input '{name}' is computed at run time",
                "calibrate, and store both as constants",
            )
    return None


def _activation_grid(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    for name in view.data_inputs(node):
        grid = _grid(view, _behind_moves(view, name))
        if grid is None or view.is_constant(name):
            continue
        if grid.dtype not in _EIGHT_BIT:
            return f"its input '{name}' is {grid.dtype}", "use 8-bit activations; there are no others' kernels"
        if grid.scale.size > 1:
            return f"its input '{name}' has a scale per channel", "use one scale for a whole activation"
    return None


def _weights(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    if node.op_type not in WEIGHTED or not view.is_constant(node.input[1]):
        return None
    name = node.input[1]
    if view.dequantizer(name) is None:
        return f"its weight '{name}' is float", "quantize the weight: int8, symmetric, per output channel"
    grid = _grid(view, name)
    if grid is None:
        return None
    if grid.dtype != "int8":
        return f"its weight '{name}' is {grid.dtype}", "use int8 weights with zero-point 0"
    if np.any(grid.zero_point):
        return f"its weight '{name}' has a zero-point that is not 0", "use symmetric weights: zero-point 0"
    return None


def _grid(view: GraphView, tensor: str) -> QParams | None:
    dequantize = view.dequantizer(tensor)
    return None if dequantize is None else view.qparams(dequantize)


def _behind_moves(view: GraphView, tensor: str) -> str:
    """The tensor that a value comes from, across operators that only move values."""
    made = view.producer(tensor)
    while made is not None and made.op_type in CARRIED and made.op_type not in BOUNDARIES:
        tensor = made.input[0]
        made = view.producer(tensor)
    return tensor


_RULES: tuple[Callable[[GraphView, onnx.NodeProto], _Finding | None], ...] = (
    _file_without_quantizers,
    _integer_operator,
    _float_input,
    _dynamic,
    _activation_grid,
    _weights,
)
