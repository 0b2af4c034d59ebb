"""The rules of the audit about grids: element types, granularity, and what a grid may absorb."""

from __future__ import annotations

import numpy as np
import onnx

from edgekd.targets._graphview import GraphView, QParams
from edgekd.targets._kernels import WEIGHTED
from edgekd.targets._site import Finding, Site

__all__ = [
    "SIGNED",
    "activation_grids",
    "behind",
    "bias_grid",
    "clamp_finding",
    "is_signed",
    "shared_signed",
    "weight_grid",
]

_EIGHT_BIT = ("uint8", "int8")
_BIAS = "give the bias int32 with scale s_x * s_w"
_BIAS_SLACK = 0.01
"""By how much, relatively, the runtime lets the scale of a bias differ."""
_UNSIGNED = "use uint8 activations here (target onnxruntime_x86)"
SIGNED: Finding = (
    "on x86 the runtime makes signed activations unsigned, but not one that feeds several operators, so the types"
    " around it no longer agree",
    _UNSIGNED,
)
_RELATIVE_SLACK = 1e-6
"""Of a range against the limits of a clip: both were computed in float32."""


def behind(site: Site) -> QParams | None:
    """The grid of the Q behind an operator."""
    quantizer = site.quantizer_behind(site.node.output[0])
    return site.view.qparams(quantizer) if quantizer is not None else None


def weight_grid(site: Site, name: str, dequantize: onnx.NodeProto) -> Finding | None:
    """What is wrong with the grid of a weight."""
    grid = site.view.qparams(dequantize)
    if grid is None:
        return None
    if grid.dtype not in _EIGHT_BIT:
        return f"its weight '{name}' is {grid.dtype}", "use int8 weights; there are no others' kernels"
    if any(one.name == "block_size" and one.i for one in dequantize.attribute):
        return f"its weight '{name}' has a scale per block", "use one scale per output channel"
    source = site.view.dequantizer(site.node.input[0])
    inputs = site.view.qparams(source) if source is not None else None
    if grid.dtype == "uint8" and inputs is not None and inputs.dtype == "int8" and not site.signed_rewritten:
        return f"its weight '{name}' is uint8 and its input int8", "use int8 weights"
    return None


def activation_grids(site: Site) -> Finding | None:
    """Element types and granularity of the activations on both sides."""
    view, node = site.view, site.node
    known = {name: view.qparams(dq) for name in view.data_inputs(node) if (dq := view.dequantizer(name)) is not None}
    for output in node.output:
        quantizer = site.quantizer_behind(output)
        if quantizer is not None:
            known[quantizer.output[0]] = view.qparams(quantizer)
    # a weight has a grid of its own; another constant is an activation like others
    weights = node.op_type in WEIGHTED
    counted = {name: grid for name, grid in known.items() if not (weights and view.is_constant(name))}
    grids = {name: grid for name, grid in counted.items() if grid is not None}
    for name, grid in grids.items():
        if grid.dtype not in _EIGHT_BIT:
            return f"the activation '{name}' is {grid.dtype}", "use 8-bit activations; there are no others' kernels"
        if grid.scale.size > 1:
            return f"the activation '{name}' has a scale per channel", "use one scale for a whole activation"
    if not site.signed_rewritten and len({grid.dtype for grid in grids.values()}) > 1:
        types = ", ".join(f"'{name}' {grid.dtype}" for name, grid in grids.items())
        return f"its activations differ in element type: {types}", "use one element type for all activations"
    return None


def bias_grid(site: Site) -> Finding | None:
    """A bias is added to a sum of products of codes: it must be on their grid."""
    node, view = site.node, site.view
    if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or not node.input[2]:
        return None
    dequantize = view.dequantizer(node.input[2])
    grid = view.qparams(dequantize) if dequantize is not None else None
    if grid is None:
        return None
    if grid.dtype != "int32":
        return f"its bias '{node.input[2]}' is {grid.dtype}", _BIAS
    sums = _scale_of_sums(site)
    if node.op_type != "Conv" or sums is None or _close(grid.scale, sums):
        return None  # Gemm is taken without a look at the scale
    found, wanted = float(np.ravel(grid.scale)[0]), float(sums[0])
    return f"its bias '{node.input[2]}' has scale {found:.4g}, not s_x * s_w = {wanted:.4g}", _BIAS


def _scale_of_sums(site: Site) -> np.ndarray | None:
    """s_x * s_w, one value or one a channel."""
    pairs = [site.view.dequantizer(name) for name in site.node.input[:2]]
    grids = [site.view.qparams(one) for one in pairs if one is not None]
    known = [one.scale for one in grids if one is not None]
    return np.ravel(known[0]) * np.ravel(known[1]) if len(known) == 2 and known[0].size == 1 else None


def _close(scale: np.ndarray, wanted: np.ndarray) -> bool:
    found = np.ravel(scale)
    sizes = {found.size, wanted.size}
    return len(sizes - {1}) <= 1 and bool(np.allclose(found, wanted, rtol=_BIAS_SLACK, atol=0.0))


def clamp_finding(site: Site, clamp: onnx.NodeProto, grid: QParams) -> Finding | None:
    """Why a Q with this grid cannot take over what a ReLU or clip cuts off."""
    if grid.dtype not in _EIGHT_BIT:
        return None
    if clamp.op_type == "Relu":
        if np.all(grid.zero_point == grid.lowest_code):
            return None
        return (
            f"the ReLU behind it cannot fold: the zero-point of its Q is {int(grid.zero_point.flat[0])},"
            f" not {grid.lowest_code}, the lowest {grid.dtype} code",
            f"put the zero-point at {grid.lowest_code}",
        )
    low, high = _limits(site.view, clamp)
    smallest, largest = grid.real_range
    slack = _RELATIVE_SLACK * max(abs(largest), abs(smallest))
    if smallest >= low - slack and largest <= high + slack:
        return None
    return (
        f"the Clip [{low:g}, {high:g}] behind it cannot fold: its Q reaches from {smallest:.4g} to {largest:.4g}",
        f"limit the range of that Q to [{low:g}, {high:g}]",
    )


def shared_signed(site: Site) -> Finding | None:
    """On x86 the runtime turns signed pairs into unsigned ones, but not where several operators take one."""
    if not site.signed_rewritten:
        return None
    view, node = site.view, site.node
    sources = [(name, made) for name in view.data_inputs(node) if (made := view.dequantizer(name)) is not None]
    quantizers = [one for name in node.output if name and (one := site.quantizer_behind(name)) is not None]
    around = [*(made for _, made in sources if not view.is_foldable(made)), *quantizers]
    kept = [_stays_signed(view, one) for one in around]
    if any(kept) and (node.op_type in WEIGHTED or not all(kept)):
        return SIGNED
    if any(kept) or node.op_type in WEIGHTED:
        return None
    for name, made in sources:
        grid = view.qparams(made)
        if view.is_foldable(made) and grid is not None and grid.dtype == "int8":
            return (
                f"its constant '{name}' is int8 and stays so, while on x86 the runtime makes activations unsigned",
                _UNSIGNED,
            )
    return None


def is_signed(site: Site) -> bool:
    """Whether any activation of the graph is signed: enough to suspect the rewriting where nothing else is wrong."""
    quantizers = (node for node in site.view.nodes if node.op_type == "QuantizeLinear")
    grids = (site.view.qparams(node) for node in quantizers if not site.view.is_foldable(node))
    return any(grid is not None and grid.dtype == "int8" for grid in grids)


def _stays_signed(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether the pair of a signed Q or DQ feeds several operators, or ends in a model output."""
    grid = view.qparams(node)
    if grid is None or grid.dtype != "int8":
        return False
    quantize = view.producer(node.input[0]) if node.op_type == "DequantizeLinear" else node
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return True
    ends = [one.output[0] for one in view.consumers(quantize.output[0])]
    # an operator that takes a tensor twice reads it twice
    readers = [list(user.input).count(end) for end in ends for user in view.consumers(end)]
    return max(len(ends), sum(readers)) > 1 or quantize.output[0] in view.graph_outputs


def _limits(view: GraphView, clip: onnx.NodeProto) -> tuple[float, float]:
    """Of a clip; as attributes before operator set 11."""
    limits = {"min": -np.inf, "max": np.inf}
    limits |= {one.name: one.f for one in clip.attribute if one.name in limits}
    for position, name in ((1, "min"), (2, "max")):
        value = view.constant(clip.input[position]) if len(clip.input) > position and clip.input[position] else None
        if value is not None:
            limits[name] = float(value.reshape(-1)[0])
    return limits["min"], limits["max"]
