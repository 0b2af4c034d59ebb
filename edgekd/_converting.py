"""From a prepared graph to an int8 program: torchao's conversion, and what has to be put right around it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from edgekd._quiet import quiet
from edgekd.calibration._fake_quantize import set_phase
from edgekd.targets._annotate import is_weighted
from edgekd.targets._base import Numerics

__all__ = ["convert"]

_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_DEQUANTIZE_CHANNELS = torch.ops.quantized_decomposed.dequantize_per_channel.default


def convert(graph: GraphModule, example: Tensor, *, numerics: Numerics) -> GraphModule:
    """Turn a calibrated or trained graph into an int8 program that gives logits only.

    Args:
        graph: from `prepare`, calibrated; it is not changed.
        example: one batch, so that every weight quantizer has seen its weight.
        numerics: the target's; where its biases are int32, the program's are rounded to that grid, so that
            the exported file computes the same codes.
    """
    with quiet():
        twin = copy.deepcopy(graph)
    set_phase(twin, "frozen")
    with torch.no_grad():
        twin(example)
    _drop_taps(twin)
    with quiet():
        program: GraphModule = convert_pt2e(twin)
    _drop_unread(program)
    if numerics.bias == "int32":
        _round_biases(program)
    return program


def _drop_taps(graph: GraphModule) -> None:
    output = next(node for node in graph.graph.nodes if node.op == "output")
    first = output.args[0][0]
    output.args = ((first,),)
    _single_output(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _drop_unread(program: GraphModule) -> None:
    """Remove tensors that no node reads: the float weights that the int8 ones were made from."""
    read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*program.named_parameters(), *program.named_buffers()) if name not in read]:
        path, _, leaf = name.rpartition(".")
        delattr(program.get_submodule(path), leaf)


def _round_biases(program: GraphModule) -> None:
    """Round every bias of a quantized operator to the accumulator's grid, s_x * s_w, in place."""
    for node in program.graph.nodes:
        if not is_weighted(node) or len(node.args) < 3 or node.args[2] is None:
            continue
        data, weight, bias = node.args[:3]
        if data.target is not _DEQUANTIZE or weight.target is not _DEQUANTIZE_CHANNELS:
            continue
        scale = float(data.args[1]) * _attribute(program, weight.args[1]).double()
        if len(bias.users) > 1:
            # each reader's accumulator has a grid of its own
            bias = _copied(program, bias, node)
            node.args = (data, weight, bias, *node.args[3:])
        values = _attribute(program, bias)
        with torch.no_grad():
            values.copy_(torch.round(values.double() / scale) * scale)
    program.recompile()


def _copied(program: GraphModule, read: Node, reader: Node) -> Node:
    """A get_attr node in front of `reader` that reads a copy of what `read` reads."""
    name = f"{reader.name}_bias"
    program.register_buffer(name, _attribute(program, read).detach().clone())
    with program.graph.inserting_before(reader):
        copied: Node = program.graph.get_attr(name)
    copied.meta = dict(read.meta)
    return copied


def _attribute(program: GraphModule, node: Node) -> Tensor:
    """The tensor that a get_attr node reads."""
    value: object = program
    for part in str(node.target).split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise TypeError(f"{node.target} is no tensor")
    return value


def _single_output(graph: GraphModule) -> None:
    """Make the calling convention say one tensor where it said (logits, *taps)."""
    from torch.utils import _pytree as pytree

    codegen: Any = graph.graph._codegen
    info = codegen.pytree_info
    codegen.pytree_info = info._replace(out_spec=pytree.tree_structure(0))
