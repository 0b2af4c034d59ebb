"""An int8 torch program as ExecuTorch can take it; what it computes stays the same."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekd.targets._groups import is_weighted

__all__ = ["prepared"]

_aten = torch.ops.aten
_CLAMPS = (_aten.relu.default, _aten.hardtanh.default)
# by name: the operators are only there once something has quantized
_QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
_DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
_DEQUANTIZE_CHANNELS = "quantized_decomposed.dequantize_per_channel.default"


def prepared(program: GraphModule) -> GraphModule:
    """A copy that ExecuTorch hands to XNNPACK whole.

    Every weighted operator is int8 throughout or has a float weight: XNNPACK's int8 kernels give codes only, and handed
    a layer with a quantized weight and a float result, ExecuTorch 1.5.1 leaves it out of the delegate but takes
    the DQ in front of it away, so that the file computes something else.

    Every concatenation between codes has one grid, its result's: XNNPACK concatenates nothing else. Rounding each part
    to that grid before gives the same codes as rounding the whole behind.

    Args:
        program: from `quantize.convert`; it is not changed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = copy.deepcopy(program)
    for node in list(twin.graph.nodes):
        if is_weighted(node) and _is(node.args[1], _DEQUANTIZE_CHANNELS) and not _is_int8_throughout(node):
            _store_float(twin, node)
        if node.target is _aten.cat.default:
            _concatenate_on_one_grid(twin, node)
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


def _concatenate_on_one_grid(program: GraphModule, node: Node) -> None:
    """Round the parts of a concatenation to the grid of the Q behind it, and leave out a clamp that this Q does."""
    parts = node.args[0]
    clamp, quantize = None, next(iter(node.users), None)
    if quantize is not None and quantize.target in _CLAMPS and len(node.users) == 1:
        clamp, quantize = quantize, next(iter(quantize.users), None)
    alone = len(node.users) == 1 and (clamp is None or len(clamp.users) == 1)
    if not alone or not isinstance(parts, (list, tuple)) or not all(_is(part, _DEQUANTIZE) for part in parts):
        return
    if quantize is None or not _is(quantize, _QUANTIZE) or (clamp is not None and not _clamps_as_much(quantize, clamp)):
        return
    grid, rounds = quantize.args[1:], quantize.target
    with program.graph.inserting_before(node):
        moved = [_rounded(program, part, grid, rounds) for part in parts if isinstance(part, Node)]
    node.args = (moved, *node.args[1:])
    if clamp is not None:
        clamp.replace_all_uses_with(node)
        program.graph.erase_node(clamp)


def _rounded(program: GraphModule, part: Node, grid: tuple[Any, ...], rounds: Any) -> Node:
    """A dequantized tensor on another grid; itself where it has that grid."""
    if part.args[1:] == grid:
        return part
    codes = program.graph.call_function(rounds, (part, *grid))
    values = program.graph.call_function(part.target, (codes, *grid))  # type: ignore[arg-type]
    for made in (codes, values):
        made.meta = dict(part.meta)
    return values


def _clamps_as_much(quantize: Node, clamp: Node) -> bool:
    """Whether the codes of a Q reach no further than a clamp lets pass."""
    grid = [one for one in quantize.args[1:5] if isinstance(one, (int, float))]
    if len(grid) < 4:
        return False
    scale, zero_point, low, high = grid
    if zero_point != low:
        return False
    bounds = [one for one in clamp.args[1:3] if isinstance(one, (int, float))]
    if clamp.target is _aten.relu.default or len(bounds) < 2:
        return clamp.target is _aten.relu.default
    # a range that ends at the bound may end a rounding error above it
    return bounds[0] == 0 and scale * (high - low) <= bounds[1] * (1 + 1e-6)


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
