"""Fusion groups of an exported torch graph, each with the name that a recipe, a report and a search call it by.

A group is one operator that can run as int8 with the ReLU or ReLU6 behind it. It is what is restored to float as a
whole: half of a group in float would cost conversions and gain nothing.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from edgekd.errors import UsageError, did_you_mean
from edgekd.targets._rules import BY_ATEN, Operator

__all__ = [
    "Group",
    "behind_quantizers",
    "chosen",
    "fused_end",
    "groups",
    "is_float_tensor",
    "is_weighted",
    "live_nodes",
    "operator_of",
]

_aten = torch.ops.aten
_ROLES = ("weighted", "product", "binary", "pool", "concat", "function")


@dataclass(frozen=True)
class Group:
    """One operator and what it is fused with.

    Args:
        name: the path of the module that it comes from; with the operator's name behind it where the module
            computes several things, `layers.2.add`.
        operator: its row of the rule table.
        node: the operator.
        end: its last node, the ReLU behind it or itself.
    """

    name: str
    operator: Operator
    node: Node
    end: Node


def operator_of(node: Node) -> Operator | None:
    """The row of the rule table that a node stands in."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    if node.target.namespace != "aten":
        return None
    return BY_ATEN.get(str(node.target).removeprefix("aten."))


def is_weighted(node: Node) -> bool:
    """Whether a node is a convolution or a fully connected layer."""
    operator = operator_of(node)
    return operator is not None and operator.role == "weighted"


def is_float_tensor(node: object) -> bool:
    """Whether a node's value is a tensor of floats with at least one dimension."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.ndim > 0


def behind_quantizers(node: Node) -> Node:
    """The node whose value a quantizer of a prepared graph passes on; any other node itself."""
    while node.op == "call_module" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def live_nodes(model: GraphModule) -> set[Node]:
    """The nodes that the logits depend on; the others serve taps only, and are dropped with them."""
    output = next(node for node in model.graph.nodes if node.op == "output")
    found: set[Node] = set()
    waiting = [output.args[0][0]]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def fused_end(node: Node, live: set[Node]) -> Node:
    """The last node of the group that starts at `node`: the ReLU behind it, or itself.

    Taps do not count as readers: what is shipped must not depend on them.
    """
    readers = [user for user in node.users if user in live]
    return readers[0] if len(readers) == 1 and _starts_at_zero(readers[0]) else node


def groups(model: GraphModule) -> list[Group]:
    """Every group that the logits depend on, in the order of execution; names are unique.

    A graph has the same groups before and after quantizers were put into it.
    """
    live = live_nodes(model)
    found: list[Group] = []
    taken: dict[str, int] = {}
    for node in model.graph.nodes:
        operator = operator_of(node) if node in live else None
        if operator is None or operator.role not in _ROLES or not is_float_tensor(node):
            continue
        name = _name(node, operator)
        count = taken.get(name, 0)
        taken[name] = count + 1
        found.append(Group(f"{name}_{count}" if count else name, operator, node, fused_end(node, live)))
    return found


def chosen(found: Iterable[Group], patterns: Sequence[str]) -> set[str]:
    """Names of the groups that any pattern matches: a group's name, a module above it, or a pattern with * and ?.

    Raises:
        UsageError: a pattern that matches nothing; names the nearest group.
    """
    names = [group.name for group in found]
    matched: set[str] = set()
    for pattern in patterns:
        hits = {
            name for name in names if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")
        }
        if not hits:
            raise UsageError(f"quantize.float_layers: no layer '{pattern}'. {did_you_mean(pattern, names)}")
        matched |= hits
    return matched


def _starts_at_zero(node: Node) -> bool:
    """Whether a node is a ReLU, or a clamp to [0, something]: what a zero-point at the lowest code absorbs."""
    if node.target is _aten.hardtanh.default:
        return len(node.args) > 1 and node.args[1] in (0, 0.0)
    return node.target is _aten.relu.default


def _name(node: Node, operator: Operator) -> str:
    weight = behind_quantizers(node.args[1]) if len(node.args) > 1 and isinstance(node.args[1], Node) else None
    if operator.role == "weighted" and weight is not None and weight.op == "get_attr":
        # a weight knows its module exactly, also where modules share one
        return _plain(str(weight.target).rpartition(".")[0]) or operator.name
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = (stack[-1][0], str(stack[-1][1])) if stack else ("", "")
    path = _plain(path)
    leaf = "torch.nn.modules" in kind and "container" not in kind
    return path if leaf and path else f"{path}.{operator.name}".lstrip(".")


def _plain(path: str) -> str:
    """A module's path in the student: `Tapped` wraps it while it is exported."""
    return "" if path == "model" else path.removeprefix("model.")
