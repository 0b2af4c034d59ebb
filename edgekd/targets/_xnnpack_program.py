"""An int8 torch program as ExecuTorch can take it: no quantized weight without codes on both sides of its operator."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekd.targets._groups import is_weighted

__all__ = ["without_loose_weights"]

_aten = torch.ops.aten
_CLAMPS = (_aten.relu.default, _aten.hardtanh.default)
# by name: the operators are only there once something has quantized
_QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
_DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
_DEQUANTIZE_CHANNELS = "quantized_decomposed.dequantize_per_channel.default"


def without_loose_weights(program: GraphModule) -> GraphModule:
    """A copy in which every weighted operator is int8 throughout or has a float weight.

    XNNPACK's int8 kernels give codes only. Handed a layer with a quantized weight and a float result, ExecuTorch
    1.5.1 leaves it out of the delegate but takes the DQ in front of it away: the program then computes something else.

    Args:
        program: from `quantize.convert`; it is not changed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = copy.deepcopy(program)
    for node in list(twin.graph.nodes):
        if is_weighted(node) and _is(node.args[1], _DEQUANTIZE_CHANNELS) and not _is_int8_throughout(node):
            _store_float(twin, node)
    twin.graph.eliminate_dead_code()
    twin.recompile()
    return twin


def _is(node: object, target: str) -> bool:
    return isinstance(node, Node) and str(node.target) == target


def _is_int8_throughout(node: Node) -> bool:
    """Whether codes come in and codes alone go out, behind a clamp at most."""
    users = list(node.users)
    if len(users) == 1 and users[0].target in _CLAMPS:
        users = list(users[0].users)
    return _is(node.args[0], _DEQUANTIZE) and len(users) == 1 and _is(users[0], _QUANTIZE)


def _store_float(program: GraphModule, node: Node) -> None:
    """Give a weighted operator the values that its codes stand for, as a constant."""
    dequantize = node.args[1]
    assert isinstance(dequantize, Node)
    arguments = [_value(program, one) if isinstance(one, Node) else one for one in dequantize.args]
    name = f"{node.name}_float_weight"
    dequantized: Any = dequantize.target
    program.register_buffer(name, dequantized(*arguments))
    with program.graph.inserting_before(node):
        stored = program.graph.get_attr(name)
    stored.meta = dict(dequantize.meta)
    node.replace_input_with(dequantize, stored)


def _value(program: GraphModule, node: Node) -> Tensor:
    value: Any = program
    for part in str(node.target).split("."):
        value = getattr(value, part)
    found: Tensor = value
    return found
