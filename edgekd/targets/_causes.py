"""Why ONNX Runtime's CPU provider leaves an operator in float, and what to change.

Each rule was found in the runtime's behaviour on a small graph (1.31.1); the tests build those graphs again, so a
rule that a newer runtime no longer has fails there. The first rule that applies is the cause.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from edgekd.targets import _causes_grids as grids
from edgekd.targets._base import Island
from edgekd.targets._graphview import attribute
from edgekd.targets._kernels import ABSORBED, CARRIED, FLOAT_RESULT, MOVES, WEIGHTED, is_int8_operator
from edgekd.targets._site import Finding, Site, named

__all__ = ["finding_of", "island_of"]

_UNEXPLAINED = (
    "no rule of the audit explains it: the runtime did not take it for its int8 kernel",
    "compare it with an operator of the same type that runs as int8, or leave it out of quantization",
)
_NOT_CARRIED = (
    "the DQ in front of it and the Q behind it are not next to it, and the runtime did not carry them across",
    "put a Q/DQ pair with the parameters of its input right behind it",
)
_QUANTIZE_WEIGHT = "quantize the weight: int8, symmetric, per output channel"
_NORMALISATIONS = ("BatchNormalization", "InstanceNormalization")


def island_of(site: Site) -> Island:
    """Name the cause and the remedy of a float operator."""
    cause, remedy = finding_of(site) or _left_over(site)
    return Island(site.label, site.node.op_type, cause, remedy)


def finding_of(site: Site) -> Finding | None:
    """Cause and remedy by the first rule that applies; None when the rules expect the operator to be int8."""
    if is_int8_operator(site.node):
        return None
    for rule in _RULES:
        found = rule(site)
        if found is not None:
            return found
    return None


def _left_over(site: Site) -> Finding:
    """What is probable where no rule applies."""
    if site.node.op_type in MOVES:
        return _NOT_CARRIED
    return grids.SIGNED if site.signed_rewritten and grids.is_signed(site) else _UNEXPLAINED


def _file_without_quantizers(site: Site) -> Finding | None:
    if site.quantized:
        return None
    return "the file has no Q/DQ nodes", "quantize the model before exporting it (edgekd quantize)"


def _mean(site: Site) -> Finding | None:
    if site.node.op_type != "ReduceMean":
        return None
    return "ReduceMean has no int8 kernel", "export the pooling as GlobalAveragePool"


def _form(site: Site) -> Finding | None:
    """Settings of an operator for which there is no int8 kernel."""
    node, view = site.node, site.view
    if node.op_type == "Gemm":
        alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
        if alpha != 1.0 or (beta != 1.0 and len(node.input) > 2):
            return f"its alpha is {alpha:g} and its beta {beta:g}", "multiply them into the weight and the bias"
    if node.op_type in FLOAT_RESULT and view.is_constant(node.input[0]) and not view.is_constant(node.input[1]):
        return (
            f"its first input '{node.input[0]}' is the weight, and the kernels take weights as the second",
            "transpose the product, so that the activation comes first",
        )
    if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        return "it also gives the indices of the maxima, in whole numbers", "use a MaxPool without the second output"
    return None


def _float_input(site: Site) -> Finding | None:
    view, node = site.view, site.node
    # a constant first: it is what is forgotten where a product has its bias apart
    for name in sorted(view.data_inputs(node), key=lambda name: not view.is_constant(name)):
        if _comes_as_codes(site, name):
            continue
        if node.op_type in CARRIED and site.quantizer_behind(node.output[0]) is not None:
            continue
        if view.comes_from_outside(name):
            return (
                f"its input '{name}' comes from outside of the body that it lies in",
                "put a Q/DQ pair on it inside the body: pairs outside are not looked at",
            )
        made = view.producer(name)
        if made is None or view.is_constant(name):
            return _stored_or_fed(site, name)
        if made.op_type in MOVES and view.dequantizer(made.input[0]) is not None:
            return (
                f"its input '{name}' comes from {named(made)}, which has no Q/DQ pair behind it",
                f"put a pair with the parameters of {made.op_type}'s own input behind it",
            )
        return f"its input '{name}' comes in float from {named(made)}", f"put a Q/DQ pair on '{name}'"
    return None


def _stored_or_fed(site: Site, name: str) -> Finding:
    view, node = site.view, site.node
    if not view.is_constant(name):
        return f"its input '{name}' is a float model input", f"put a Q/DQ pair on '{name}'"
    products = [made for one in node.input if (made := _product_behind(site, one)) is not None]
    if node.op_type == "Add" and products:
        return (
            f"its input '{name}' is a float constant, the bias of {named(products[0])}",
            "put Q/DQ pairs on the bias and on the product, or join both into a Gemm",
        )
    return f"its input '{name}' is a float constant", f"put a Q/DQ pair on '{name}'"


def _product_behind(site: Site, name: str) -> onnx.NodeProto | None:
    """The matrix product that a tensor comes from, directly or through a pair."""
    dequantize = site.view.dequantizer(name)
    quantize = site.view.producer(dequantize.input[0]) if dequantize is not None else None
    made = site.view.producer(quantize.input[0] if quantize is not None else name)
    return made if made is not None and made.op_type == "MatMul" else None


def _comes_as_codes(site: Site, name: str) -> bool:
    """Whether a DQ makes a tensor, directly or before moves that the runtime carries it across."""
    view = site.view
    if site.node.op_type == "Where" and view.is_constant(name):
        return True  # the runtime makes codes of it
    made = view.producer(name)
    while made is not None and made.op_type in CARRIED:
        if any(user.op_type == "QuantizeLinear" for user in view.consumers(made.output[0])):
            return False  # a pair of its own keeps the runtime from carrying the one in front across
        made = view.producer(made.input[0])
    return made is not None and made.op_type == "DequantizeLinear"


def _weights(site: Site) -> Finding | None:
    view, node = site.view, site.node
    if node.op_type not in WEIGHTED or not view.is_constant(node.input[1]):
        return None
    name = node.input[1]
    dequantize = view.dequantizer(name)
    if dequantize is None:
        return None if _quantized_at_load(site) else (f"its weight '{name}' is float", _QUANTIZE_WEIGHT)
    if view.comes_from_outside(name):
        return f"its weight '{name}' comes from outside of the body that it lies in", "store the weight inside it"
    return grids.weight_grid(site, name, dequantize)


def _quantized_at_load(site: Site) -> bool:
    """Whether the runtime makes codes of a float weight by itself: with a float bias or none, and a Q behind."""
    node = site.node
    stored = len(node.input) < 3 or not node.input[2] or site.view.constant(node.input[2]) is not None
    return node.op_type in ("Conv", "Gemm") and stored and site.quantizer_behind(node.output[0]) is not None


def _moved(site: Site) -> Finding | None:
    """A move of values keeps codes only if they mean the same before and behind it."""
    view, node = site.view, site.node
    source = view.dequantizer(node.input[0])
    if node.op_type not in MOVES or source is None:
        return None
    quantizers = [site.quantizer_behind(name) for name in node.output if name]
    if any(one is None for one in quantizers):
        return None if node.op_type in CARRIED else _open_output(site)
    before = view.qparams(source)
    behind = [view.qparams(one) for one in quantizers if one is not None]
    if before is not None and any(one is not None and not before.same_as(one) for one in behind):
        return "its Q/DQ parameters before and behind it differ", "give both sides the same scale and zero-point"
    return None


def _lone_activation(site: Site) -> Finding | None:
    if site.node.op_type not in ABSORBED:
        return None
    grid = grids.behind(site)
    if grid is not None and grids.clamp_finding(site, site.node, grid) is None:
        return None
    return (
        f"a Q/DQ pair stands between it and {_before_pair(site)}, so nothing can absorb it",
        "remove the pair in front of it",
    )


def _folded_activation(site: Site) -> Finding | None:
    """A ReLU or clip disappears only if the grid of the Q behind it cannot hold what it cuts off."""
    activation, grid = site.activation_behind(), grids.behind(site)
    if activation is None or grid is None or site.node.op_type in MOVES | ABSORBED:
        return None
    return grids.clamp_finding(site, activation, grid)


def _open_output(site: Site) -> Finding | None:
    """No Q on the output, or something else beside it."""
    output, users = site.result()
    quantizers = [user for user in users if user.op_type == "QuantizeLinear"]
    others = [named(user) for user in users if user.op_type != "QuantizeLinear"]
    if output in site.view.graph_outputs:
        others.append("a model output" if site.view.outer is None else "a result of the body that it lies in")
    if not others or (not quantizers and site.quantizer_behind(site.node.output[0]) is not None):
        return None
    if site.node.op_type in CARRIED and _comes_as_codes(site, site.node.input[0]):
        return None
    where = " and ".join(others)
    if quantizers:
        return f"its output '{output}' goes to a Q and in float to {where}", "let all of them take the DQ's output"
    if site.node.op_type in FLOAT_RESULT and output == site.node.output[0]:
        return _float_bias(site, where)
    if users and users[0].op_type in _NORMALISATIONS:
        return f"its output '{output}' goes in float to {where}", "fold the normalisation into it before quantizing"
    return f"there is no Q on its output '{output}', which goes in float to {where}", f"put a Q/DQ pair on '{output}'"


def _float_bias(site: Site, where: str) -> Finding | None:
    node = site.node
    if len(node.input) < 3 or not node.input[2] or site.view.dequantizer(node.input[2]) is not None:
        return None
    return (
        f"its bias '{node.input[2]}' is float and there is no Q on its output, which goes to {where}",
        "give the bias a DQ from int32 with scale s_x * s_w, or put a Q/DQ pair on the output",
    )


def _before_pair(site: Site) -> str:
    dequantize = site.view.dequantizer(site.node.input[0])
    quantize = site.view.producer(dequantize.input[0]) if dequantize is not None else None
    made = site.view.producer(quantize.input[0]) if quantize is not None else None
    return named(made) if made is not None else "the operator before it"


_RULES: tuple[Callable[[Site], Finding | None], ...] = (
    _file_without_quantizers,
    _mean,
    _form,
    _float_input,
    _weights,
    grids.activation_grids,
    _lone_activation,
    _moved,
    _folded_activation,
    _open_output,
    grids.bias_grid,
    grids.shared_signed,
)
