"""Write Q/DQ pairs and 8-bit weights into a float ONNX graph, where a `Placement` wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import NodeProto, helper

from edgekd.calibration._base import Grid
from edgekd.calibration._fake_quantize import PerChannelWeightQuantizer
from edgekd.targets._base import Numerics
from edgekd.targets._graph import Graph
from edgekd.targets._graph_passes import remove_dead
from edgekd.targets._place import Placement

__all__ = ["Range", "activation_grid", "insert_pairs", "weight_codes"]

Range = tuple[float, float]


def activation_grid(numerics: Numerics) -> Grid:
    """The grid of a target's activations."""
    low, high = (0, 255) if numerics.activation == "uint8" else (-128, 127)
    return Grid(low, high, numerics.symmetric_activations, numerics.half_scales)


@dataclass(frozen=True)
class _Parameters:
    """Names of the scale and zero-point that a Q and a DQ read."""

    scale: str
    zero_point: str


def insert_pairs(
    graph: Graph, placement: Placement, ranges: Mapping[str, Range], *, numerics: Numerics, reduce_range: bool
) -> None:
    """Rewrite a float graph into a Q/DQ graph, in place.

    Args:
        graph: what the placement was made for.
        placement: says where.
        ranges: (minimum, maximum) of each tensor of `placement.observed()`; constants are read.
        numerics: the target's.
        reduce_range: neighbouring weights share their 8 bits; see `edgekd.calibration._pair_sums`.
    """
    parameters = _activation_parameters(graph, placement, ranges, activation_grid(numerics))
    before, behind, renamed = _activation_pairs(graph, placement, parameters)
    before += _weights(graph, placement, numerics, reduce_range)
    nodes = []
    for node in list(graph.graph.node):
        nodes += [node, *(pair for name in node.output for pair in behind.get(renamed.get(name, name), []))]
    copies = [_copied(node) for node in (*before, *nodes)]
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
    graph.graph.ClearField("value_info")
    remove_dead(graph)


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _activation_parameters(
    graph: Graph, placement: Placement, ranges: Mapping[str, Range], grid: Grid
) -> dict[str, _Parameters]:
    dtype = np.uint8 if grid.low == 0 else np.int8
    found = {}
    for owner in dict.fromkeys(placement.coded.values()):
        values = graph.value(owner)
        low, high = ranges[owner] if values is None else (float(values.min()), float(values.max()))
        scale, zero_point = grid.parameters(torch.tensor(low), torch.tensor(high))
        found[owner] = _Parameters(
            graph.add_constant(f"{owner}_scale", np.array(scale.item(), np.float32)),
            graph.add_constant(f"{owner}_zero_point", np.array(zero_point.item(), dtype)),
        )
    return found


def _activation_pairs(
    graph: Graph, placement: Placement, parameters: Mapping[str, _Parameters]
) -> tuple[list[NodeProto], dict[str, list[NodeProto]], dict[str, str]]:
    """(pairs at the graph's start, pairs behind the node that makes a tensor, renamed tensors)."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    start: list[NodeProto] = []
    behind: dict[str, list[NodeProto]] = {}
    renamed: dict[str, str] = {}
    for tensor, owner in placement.coded.items():
        source, result = tensor, graph.free_name(f"{tensor}_dequantized")
        takers = [node for node in readers.get(tensor, []) if placement.reads_codes(node, tensor)]
        if tensor in graph.outputs and tensor in placement.results:
            # the model's output keeps its name, so what was computed takes another
            source, result = graph.free_name(f"{tensor}_computed"), tensor
            _rename(makers[tensor].output, tensor, source)
            renamed[source] = tensor
        elif not takers:
            continue
        for node in takers:
            _rename(node.input, tensor, result)
        chosen = parameters[owner]
        codes = graph.free_name(f"{tensor}_codes")
        pair = [
            helper.make_node(
                "QuantizeLinear", [source, chosen.scale, chosen.zero_point], [codes], name=f"{tensor}_quantize"
            ),
            helper.make_node(
                "DequantizeLinear", [codes, chosen.scale, chosen.zero_point], [result], name=f"{tensor}_dequantize"
            ),
        ]
        if tensor in makers:
            behind[tensor] = pair
        else:
            start += pair
    return start, behind, renamed


def _weights(graph: Graph, placement: Placement, numerics: Numerics, reduce_range: bool) -> list[NodeProto]:
    nodes = []
    for (name, axis), readers in placement.weights().items():
        values = graph.value(name)
        if values is None:
            raise RuntimeError(f"weight '{name}' is no constant")
        codes, scale = weight_codes(values, axis, readers, numerics=numerics, reduce_range=reduce_range)
        inputs = [
            graph.add_constant(f"{name}_codes", codes),
            graph.add_constant(f"{name}_scale", scale),
            graph.add_constant(f"{name}_zero_point", np.zeros(scale.shape, np.int8)),
        ]
        result = graph.free_name(f"{name}_dequantized")
        nodes.append(helper.make_node("DequantizeLinear", inputs, [result], name=f"{name}_dequantize", axis=axis))
        for node in readers:
            node.input[1] = result
    return nodes


def _is_depthwise(node: NodeProto, weight: np.ndarray) -> bool:
    groups = next((one.i for one in node.attribute if one.name == "group"), 1)
    return node.op_type == "Conv" and weight.shape[1] == 1 and weight.shape[0] == groups


def weight_codes(
    values: np.ndarray, axis: int, readers: Sequence[NodeProto], *, numerics: Numerics, reduce_range: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(int8 codes, float32 scale per channel) of a weight, as a prepared torch graph computes them.

    Args:
        values: the weight.
        axis: of its output channels.
        readers: the operators that read it.
        numerics: the target's.
        reduce_range: see `insert_pairs`.
    """
    grid = Grid(-127, 127, symmetric=True, half_scales=numerics.half_scales)
    pairs = reduce_range and not all(_is_depthwise(node, values) for node in readers)
    quantizer = PerChannelWeightQuantizer(
        grid, torch.int8, grid.low, grid.high, torch.per_channel_symmetric, axis, pairs=pairs
    )
    weight = torch.from_numpy(values.copy())
    quantizer(weight)
    scale, _ = quantizer.calculate_qparams()
    shape = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]
    codes = torch.round(weight / scale.view(shape)).clamp(grid.low, grid.high).to(torch.int8)
    return codes.numpy(), scale.float().numpy()


def _rename(names: object, old: str, new: str) -> None:
    for index, name in enumerate(names):  # type: ignore[arg-type, var-annotated]
        if name == old:
            names[index] = new  # type: ignore[index]
