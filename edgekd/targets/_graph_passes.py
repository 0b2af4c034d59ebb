"""Graph passes: from the exporter's ONNX to the graph that a runtime turns into int8 kernels.

Each pass takes a `Graph`, edits it in place and gives the number of changes. None changes what the graph computes
by more than the rounding of a bias to int32.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from edgekd.errors import GateFailed
from edgekd.targets._graph import Graph

__all__ = [
    "absorb_clamps",
    "fold_pads",
    "quantize_bias",
    "remove_dead",
    "remove_identities",
    "restore_global_pool",
]


def remove_identities(graph: Graph) -> int:
    """Drop Identity nodes and inference-time Dropout."""
    found = graph.of_type("Identity", "Dropout")
    for node in found:
        graph.bypass(node)
    return len(found)


def restore_global_pool(graph: Graph) -> int:
    """Turn a mean over H and W that keeps its dimensions back into GlobalAveragePool.

    The exporter writes AdaptiveAvgPool2d(1) as ReduceMean, for which no runtime has an int8 kernel.
    """
    changed = 0
    for node in graph.of_type("ReduceMean"):
        axes = graph.value(node.input[1]) if len(node.input) > 1 else None
        if axes is None:  # an attribute until operator set 18
            axes = next((np.array(a.ints) for a in node.attribute if a.name == "axes"), None)
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if axes is None or keep != 1 or sorted(int(axis) for axis in axes) not in ([-2, -1], [2, 3]):
            continue
        replacement = helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], name=node.name)
        graph.insert_before(node, [replacement])
        graph.graph.node.remove(node)
        changed += 1
    return changed


def fold_pads(graph: Graph) -> int:
    """Let convolutions pad by themselves where zeros were put around their input.

    Between the two there may be a Q/DQ pair on the grid that the zeros were on already: no runtime moves codes through
    a Pad, so that it would run in float between two conversions.
    """
    changed = 0
    for node in graph.of_type("Pad"):
        amounts = _zero_pads(graph, node)
        if amounts is None or node.output[0] in graph.outputs:
            continue
        readers = [_behind_pair(graph, node, reader) for reader in graph.readers(node.output[0])]
        convolutions = [conv for one in readers for conv in one]
        if not convolutions or any(not one for one in readers):
            continue
        if not all(_pads(conv, len(amounts) // 2) is not None for conv in convolutions):
            continue
        for conv in convolutions:
            own = _pads(conv, len(amounts) // 2) or []
            _set_pads(conv, [mine + added for mine, added in zip(own, amounts, strict=True)])
            conv.input[0] = node.input[0]
        changed += 1
    if changed:
        remove_dead(graph)
    return changed


def _zero_pads(graph: Graph, node: NodeProto) -> list[int] | None:
    """Amounts around height and width (all begins, all ends) of a Pad by zeros; None for every other Pad."""
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
    amounts = graph.value(node.input[1]) if len(node.input) > 1 else None
    value = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    if mode != b"constant" or amounts is None or value is None or value.any() or len(node.input) > 3:
        return None
    begins, ends = np.split(amounts, 2)
    if len(begins) < 3 or begins[:2].any() or ends[:2].any() or (amounts < 0).any():
        return None
    return [int(amount) for amount in (*begins[2:], *ends[2:])]


def _behind_pair(graph: Graph, pad: NodeProto, reader: NodeProto) -> list[NodeProto]:
    """The convolutions that read a Pad, straight or through a Q/DQ pair on its input's grid; [] if others do."""
    if reader.op_type == "Conv":
        return [reader] if reader.input[0] == pad.output[0] and reader.input[1] != pad.output[0] else []
    source = graph.producer(pad.input[0])
    if reader.op_type != "QuantizeLinear" or source is None or source.op_type != "DequantizeLinear":
        return []
    pairs = [one for one in graph.readers(reader.output[0]) if one.op_type == "DequantizeLinear"]
    if len(pairs) != len(graph.readers(reader.output[0])):
        return []
    if any(not _same_grid(graph, source, one) for one in (reader, *pairs)):
        return []
    users = [user for pair in pairs for user in graph.readers(pair.output[0])]
    return users if all(user.op_type == "Conv" for user in users) else []


def _same_grid(graph: Graph, one: NodeProto, other: NodeProto) -> bool:
    values = [(graph.value(a), graph.value(b)) for a, b in zip(one.input[1:], other.input[1:], strict=False)]
    return len(one.input) == len(other.input) and all(
        a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b) for a, b in values
    )


def _pads(conv: NodeProto, rank: int) -> list[int] | None:
    """A convolution's own padding; None where it is not given in numbers."""
    if next((a.s for a in conv.attribute if a.name == "auto_pad"), b"NOTSET") not in (b"NOTSET", b"", b"VALID"):
        return None
    return next((list(a.ints) for a in conv.attribute if a.name == "pads"), [0] * 2 * rank)


def _set_pads(conv: NodeProto, amounts: list[int]) -> None:
    for attribute in [a for a in conv.attribute if a.name in ("pads", "auto_pad")]:
        conv.attribute.remove(attribute)
    conv.attribute.append(helper.make_attribute("pads", amounts))


def absorb_clamps(graph: Graph) -> int:
    """Drop a Relu or Clip whose only reader is a QuantizeLinear that clamps as much or more.

    A QuantizeLinear saturates at its lowest and highest code. Where the lowest code stands for 0 (zero-point
    at the lowest code) it does a ReLU's work, and where the highest code stands for at most the Clip's upper
    bound it does the Clip's.
    """
    changed = 0
    for node in graph.of_type("Relu", "Clip"):
        readers = graph.readers(node.output[0])
        if not readers or node.output[0] in graph.outputs:
            continue
        if all(r.op_type == "QuantizeLinear" and _clamps_enough(graph, node, r) for r in readers):
            graph.bypass(node)
            changed += 1
    return changed


def _clamps_enough(graph: Graph, clamp: NodeProto, quantize: NodeProto) -> bool:
    scale = graph.value(quantize.input[1])
    zero_point = graph.value(quantize.input[2]) if len(quantize.input) > 2 else None
    if scale is None or zero_point is None or scale.size != 1:
        return False
    codes = np.iinfo(zero_point.dtype)
    if zero_point.size != 1 or zero_point.item() != codes.min:
        return False
    if clamp.op_type == "Relu":
        return True
    low, high = _clip_bounds(graph, clamp)
    # the scale is a rounded quotient of the bound: a range that ends at the bound may end a rounding error above it
    return low == 0.0 and high is not None and scale.item() * (codes.max - codes.min) <= high * (1 + 1e-6)


def _clip_bounds(graph: Graph, clip: NodeProto) -> tuple[float | None, float | None]:
    """(low, high) of a Clip; a bound that is left out is infinite, one that is computed is None."""
    bounds: list[float | None] = [-np.inf, np.inf]
    for position, name in enumerate(list(clip.input)[1:3]):
        if name:
            value = graph.value(name)
            bounds[position] = None if value is None else float(value.item())
    return bounds[0], bounds[1]


def quantize_bias(graph: Graph) -> int:
    """Give every quantized Conv and Gemm an int32 bias with scale s_x * s_w and zero-point 0.

    Raises:
        GateFailed: a bias does not fit int32 at that scale.
    """
    changed = 0
    for node in graph.of_type("Conv", "Gemm"):
        if len(node.input) < 3 or not node.input[2]:
            continue
        bias, scale = graph.value(node.input[2]), _accumulator_scale(graph, node)
        if bias is None or scale is None or bias.dtype != np.float32 or bias.ndim != 1 or _is_scaled(node):
            continue
        codes = np.round(bias.astype(np.float64) / scale)
        if np.abs(codes).max(initial=0.0) > np.iinfo(np.int32).max:
            raise GateFailed(
                f"The bias of '{node.name}' does not fit int32 at scale {scale.min():.3g}. Its weights are close to"
                " zero in some channel; retrain or keep the layer in float."
            )
        name = node.input[2]
        # one scale for all channels must be a scalar: ONNX takes a list of one for one channel
        scale = scale if scale.size == bias.size else scale.reshape(())
        arguments = [
            graph.add_constant(f"{name}_int32", codes.astype(np.int32)),
            graph.add_constant(f"{name}_scale", scale.astype(np.float32)),
            graph.add_constant(f"{name}_zero_point", np.zeros(scale.shape, np.int32)),
        ]
        # an output names its node, and the node's own name may be missing
        output = graph.free_name(f"{node.output[0]}_bias")
        dequantize = helper.make_node("DequantizeLinear", arguments, [output], name=f"{output}_dequantize", axis=0)
        graph.insert_before(node, [dequantize])
        node.input[2] = output
        changed += 1
    return changed


def _is_scaled(node: NodeProto) -> bool:
    """Whether a Gemm multiplies its product or its bias by more than 1."""
    return any(a.name in ("alpha", "beta") and a.f != 1.0 for a in node.attribute)


def _accumulator_scale(graph: Graph, node: NodeProto) -> np.ndarray | None:
    """s_x * s_w of a node whose data and weight both come from DequantizeLinear; shape (1,) or (channels,)."""
    scales = []
    for name in node.input[:2]:
        source = graph.producer(name)
        scale = graph.value(source.input[1]) if source is not None and source.op_type == "DequantizeLinear" else None
        if scale is None:
            return None
        scales.append(scale.astype(np.float64).reshape(-1))
    product: np.ndarray = scales[0] * scales[1]
    return product


def remove_dead(graph: Graph) -> int:
    """Drop nodes and initializers that nothing reads."""
    removed = 0
    while True:
        read = {name for node in graph.graph.node for name in node.input} | graph.outputs
        dead = [node for node in graph.graph.node if not any(name in read for name in node.output)]
        for node in dead:
            graph.graph.node.remove(node)
        removed += len(dead)
        if not dead:
            break
    for tensor in list(graph.graph.initializer):
        if tensor.name not in read:
            graph.graph.initializer.remove(tensor)
            del graph.constants[tensor.name]
    kept = {name for node in graph.graph.node for name in node.output}
    for info in [info for info in graph.graph.value_info if info.name not in kept]:
        graph.graph.value_info.remove(info)
    return removed
