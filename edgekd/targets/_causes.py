"""Why ONNX Runtime's CPU provider leaves an operator in float, and what to change.

Each rule was found in the runtime's behaviour on a small graph (1.31.1); the tests build those graphs again, so a
rule that a newer runtime no longer has fails there. The first rule that applies is the cause.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from edgekd.targets._base import Island
from edgekd.targets._graphview import ABSORBED, PASS_THROUGH, GraphView

__all__ = ["island_of"]

_WITH_WEIGHTS = frozenset({"Conv", "Gemm", "MatMul"})
_FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})
"""Operators that have an int8 kernel with a float result."""

_Finding = tuple[str, str]
_EIGHT_BIT = ("uint8", "int8")


def island_of(view: GraphView, node: onnx.NodeProto, *, signed_rewritten: bool) -> Island:
    """Name the cause and the remedy of a float operator.

    Args:
        view: the file as it was, before the runtime's optimizations.
        node: the operator.
        signed_rewritten: whether the runtime rewrites signed activations to unsigned ones, as it does on x86.
    """
    for rule in _RULES:
        found = rule(view, node)
        if found is not None:
            break
    else:
        found = _signed(view, node) if signed_rewritten else None
    cause, remedy = found or (
        "no rule of the audit explains it: the runtime did not take it for its int8 kernel",
        "compare it with an operator of the same type that runs as int8, or leave it out of quantization",
    )
    return Island(node.name or node.output[0], node.op_type, cause, remedy)


def _file_without_quantizers(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    if view.has_quantizers:
        return None
    return "the file has no Q/DQ nodes", "quantize the model before exporting it (edgekd quantize)"


def _mean(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    if node.op_type != "ReduceMean":
        return None
    return "ReduceMean has no int8 kernel", "export the pooling as GlobalAveragePool"


def _float_input(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    for name in view.data_inputs(node):
        if view.dequantizer(name) is not None:
            continue
        made = view.producer(name)
        if made is None or view.is_constant(name):
            kind = "constant" if view.is_constant(name) else "model input"
            return f"its input '{name}' is a float {kind}", f"put a Q/DQ pair on '{name}'"
        if made.op_type in PASS_THROUGH and view.dequantizer(made.input[0]) is not None:
            return (
                f"its input '{name}' comes from {_named(made)}, which has no Q/DQ pair behind it",
                f"put a pair with the parameters of {made.op_type}'s own input behind it",
            )
        return f"its input '{name}' comes in float from {_named(made)}", f"put a Q/DQ pair on '{name}'"
    return None


def _weights(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    if node.op_type not in _WITH_WEIGHTS or not view.is_constant(node.input[1]):
        return None
    name = node.input[1]
    dequantize = view.dequantizer(name)
    if dequantize is None:
        return f"its weight '{name}' is float", "quantize the weight: int8, symmetric, per output channel"
    grid = view.qparams(dequantize)
    source = view.dequantizer(node.input[0])
    inputs = view.qparams(source) if source is not None else None
    if grid is None or inputs is None:
        return None
    if grid.dtype == "uint8" and inputs.dtype == "int8":
        return f"its weight '{name}' is uint8 and its input int8", "use int8 weights"
    return None


def _grids(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    """Element types and granularity of the activations on both sides."""
    grids = {name: view.qparams(dq) for name in view.data_inputs(node) if (dq := view.dequantizer(name)) is not None}
    quantizer = _quantizer_behind(view, node)
    if quantizer is not None:
        grids[quantizer.output[0]] = view.qparams(quantizer)
    known = {name: grid for name, grid in grids.items() if grid is not None and not view.is_constant(name)}
    for name, grid in known.items():
        if grid.dtype not in _EIGHT_BIT:
            return f"the activation '{name}' is {grid.dtype}", "use 8-bit activations; there are no others' kernels"
        if grid.scale.size > 1:
            return f"the activation '{name}' has a scale per channel", "use one scale for a whole activation"
    if len({grid.dtype for grid in known.values()}) > 1:
        types = ", ".join(f"'{name}' {grid.dtype}" for name, grid in known.items())
        return f"its activations differ in element type: {types}", "use one element type for all activations"
    return None


def _moved(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    """A move of values keeps codes only if they mean the same before and behind it."""
    quantizer = _quantizer_behind(view, node)
    source = view.dequantizer(node.input[0])
    if node.op_type not in PASS_THROUGH or source is None:
        return None
    if quantizer is None:
        return _open_output(view, node)
    before, behind = view.qparams(source), view.qparams(quantizer)
    if before is not None and behind is not None and not before.same_as(behind):
        return "its Q/DQ parameters before and behind it differ", "give both sides the same scale and zero-point"
    return None


def _lone_activation(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    if node.op_type not in ABSORBED:
        return None
    return (
        f"a Q/DQ pair stands between it and {_before_pair(view, node)}, so nothing can absorb it",
        "remove the pair in front of it",
    )


def _folded_activation(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    """A ReLU or clip disappears only if the grid of the Q behind it cannot hold what it cuts off."""
    activation = _activation_behind(view, node)
    quantizer = _quantizer_behind(view, node)
    grid = view.qparams(quantizer) if quantizer is not None else None
    if activation is None or grid is None:
        return None
    if activation.op_type == "Relu":
        if np.all(grid.zero_point == grid.lowest_code):
            return None
        return (
            f"the ReLU behind it cannot fold: the zero-point of its Q is {int(grid.zero_point.flat[0])},"
            f" not {grid.lowest_code}, the lowest {grid.dtype} code",
            f"put the zero-point at {grid.lowest_code}",
        )
    low, high = _clip_limits(view, activation)
    smallest, largest = grid.real_range
    slack = 1e-6 * max(abs(largest), abs(smallest))
    if smallest >= low - slack and largest <= high + slack:
        return None
    return (
        f"the Clip [{low:g}, {high:g}] behind it cannot fold: its Q reaches from {smallest:.4g} to {largest:.4g}",
        f"limit the range of that Q to [{low:g}, {high:g}]",
    )


def _open_output(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    """No Q on the output, or something else beside it."""
    output, users = _output_of(view, node)
    quantizers = [user for user in users if user.op_type == "QuantizeLinear"]
    others = [_named(user) for user in users if user.op_type != "QuantizeLinear"]
    if output in view.graph_outputs:
        others.append("a model output")
    if not others:
        return None
    where = " and ".join(others)
    if quantizers:
        return f"its output '{output}' goes to a Q and in float to {where}", "let all of them take the DQ's output"
    if node.op_type in _FLOAT_OUTPUT and output == node.output[0]:
        return _bias(view, node, where)
    return f"there is no Q on its output '{output}', which goes in float to {where}", f"put a Q/DQ pair on '{output}'"


def _bias(view: GraphView, node: onnx.NodeProto, where: str) -> _Finding | None:
    if len(node.input) < 3 or not node.input[2] or view.dequantizer(node.input[2]) is not None:
        return None
    return (
        f"its bias '{node.input[2]}' is float and there is no Q on its output, which goes to {where}",
        "give the bias a DQ from int32 with scale s_x * s_w, or put a Q/DQ pair on the output",
    )


def _bias_type(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or not node.input[2]:
        return None
    dequantize = view.dequantizer(node.input[2])
    grid = view.qparams(dequantize) if dequantize is not None else None
    if grid is None or grid.dtype == "int32":
        return None
    return f"its bias '{node.input[2]}' is {grid.dtype}", "give the bias int32 with scale s_x * s_w"


def _signed(view: GraphView, node: onnx.NodeProto) -> _Finding | None:
    sources = [dq for name in view.data_inputs(node) if (dq := view.dequantizer(name)) is not None]
    quantizer = _quantizer_behind(view, node)
    grids = [view.qparams(one) for one in (*sources, *([quantizer] if quantizer is not None else []))]
    if not any(grid is not None and grid.dtype == "int8" for grid in grids):
        return None
    return (
        "on x86 the runtime makes signed activations unsigned, but not one that feeds several operators, so the"
        " types around it no longer agree",
        "use uint8 activations here (target onnxruntime_x86)",
    )


def _output_of(view: GraphView, node: onnx.NodeProto) -> tuple[str, list[onnx.NodeProto]]:
    """The tensor behind a node and the activation that it may absorb, and who takes it."""
    activation = _activation_behind(view, node)
    output = (activation or node).output[0]
    return output, view.consumers(output)


def _activation_behind(view: GraphView, node: onnx.NodeProto) -> onnx.NodeProto | None:
    users = view.consumers(node.output[0])
    alone = len(users) == 1 and node.output[0] not in view.graph_outputs
    return users[0] if alone and users[0].op_type in ABSORBED else None


def _quantizer_behind(view: GraphView, node: onnx.NodeProto) -> onnx.NodeProto | None:
    _, users = _output_of(view, node)
    return next((user for user in users if user.op_type == "QuantizeLinear"), None)


def _clip_limits(view: GraphView, clip: onnx.NodeProto) -> tuple[float, float]:
    limits = [-np.inf, np.inf]
    for position in (1, 2):
        value = view.constant(clip.input[position]) if len(clip.input) > position and clip.input[position] else None
        if value is not None:
            limits[position - 1] = float(value)
    return limits[0], limits[1]


def _before_pair(view: GraphView, node: onnx.NodeProto) -> str:
    dequantize = view.dequantizer(node.input[0])
    quantize = view.producer(dequantize.input[0]) if dequantize is not None else None
    made = view.producer(quantize.input[0]) if quantize is not None else None
    return _named(made) if made is not None else "the operator before it"


def _named(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name or node.output[0]}'"


_RULES: tuple[Callable[[GraphView, onnx.NodeProto], _Finding | None], ...] = (
    _file_without_quantizers,
    _mean,
    _float_input,
    _weights,
    _grids,
    _lone_activation,
    _moved,
    _folded_activation,
    _open_output,
    _bias_type,
)
