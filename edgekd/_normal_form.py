"""One form for what exported graphs write in several ways, so that a target's rules meet one of each.

The same network reaches `torch.export` with in-place or plain activations, `mean` or a pooling layer, ReLU6 as
`relu6`, `hardtanh` or `clamp`. Every pass here rewrites one of these; none changes what the graph computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

__all__ = ["insert", "normalise"]

_aten = torch.ops.aten

_MONOTONE = {_aten.relu.default, _aten.hardtanh.default}
_WHERE_FROM = ("nn_module_stack", "stack_trace", "from_node", "torch_fn")


def normalise(graph: GraphModule) -> None:
    """Rewrite an exported graph into the form that the targets' rules are written for, in place."""
    _without_writes(graph)
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and (rewrite := _REWRITES.get(node.target)) is not None:
            replacement = rewrite(graph, node)
            if replacement is not None:
                node.replace_all_uses_with(replacement)
                graph.graph.erase_node(node)
    _activation_before_max_pool(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def insert(graph: GraphModule, before: Node, target: Any, args: tuple[Any, ...]) -> Node:
    """Put an operator in front of a node, with the shape and origin that later passes look up.

    Args:
        graph: owns `before`.
        before: its origin (module, source line) becomes the new operator's.
        target: an overload of an operator, `torch.ops.aten.relu.default`.
        args: nodes and plain values.
    """
    with graph.graph.inserting_before(before):
        node = graph.graph.call_function(target, args)
    node.meta = {key: before.meta[key] for key in _WHERE_FROM if key in before.meta}
    node.meta["val"] = target(*map_arg(args, lambda one: one.meta["val"]))
    return node


def _without_writes(graph: GraphModule) -> None:
    """Replace operators that write into their input (`relu_`) by those that do not.

    Who read the tensor afterwards read what was written; quantizers that are put between two operators would
    otherwise decide which copy is written to. A write through a view, or under one, is left alone.
    """
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        plain = _plain_overload(node)
        if plain is None or not isinstance(node.args[0], Node):
            continue
        written = node.args[0]
        if _is_view(written) or any(_is_view(user) for user in written.users if order[user] < order[node]):
            continue
        node.target = plain
        for user in list(written.users):
            if order[user] > order[node]:
                user.replace_input_with(written, node)


def _plain_overload(node: Node) -> Any:
    """The overload of `relu` for a node that calls `relu_`; None for every other node."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return None
    namespace, _, name = node.target._schema.name.partition("::")
    if namespace != "aten" or not name.endswith("_"):
        return None
    packet = getattr(_aten, name.removesuffix("_"), None)
    return getattr(packet, node.target._overloadname, None)


def _is_view(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view


def _bounded(graph: GraphModule, node: Node, low: Any, high: Any) -> Node | None:
    """ReLU or hardtanh(0, high) for a clamp that starts at 0."""
    if low not in (0, 0.0) or isinstance(high, Node):
        return None
    if high is None:
        return insert(graph, node, _aten.relu.default, (node.args[0],))
    return insert(graph, node, _aten.hardtanh.default, (node.args[0], 0.0, float(high)))


def _clamp(graph: GraphModule, node: Node) -> Node | None:
    low, high = [*node.args[1:], None, None][:2]
    return _bounded(graph, node, node.kwargs.get("min", low), node.kwargs.get("max", high))


def _clamp_min(graph: GraphModule, node: Node) -> Node | None:
    return _bounded(graph, node, node.args[1], None)


def _relu6(graph: GraphModule, node: Node) -> Node | None:
    return _bounded(graph, node, 0.0, 6.0)


def _silu(graph: GraphModule, node: Node) -> Node | None:
    """x * sigmoid(x): runtimes have an int8 kernel for each, none for both at once."""
    gate = insert(graph, node, _aten.sigmoid.default, (node.args[0],))
    return insert(graph, node, _aten.mul.Tensor, (node.args[0], gate))


def _switched_off(graph: GraphModule, node: Node) -> Node | None:
    """Dropout in evaluation mode, or a change of memory layout: the tensor itself."""
    source = node.args[0]
    active = node.target not in _LAYOUTS and bool(node.args[2])
    return source if isinstance(source, Node) and not active else None


def _mean(graph: GraphModule, node: Node) -> Node | None:
    """A mean over height and width is a global average pool, which has an int8 kernel; a mean has none."""
    source, axes = node.args[0], node.args[1]
    keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    rank = source.meta["val"].ndim if isinstance(source, Node) else 0
    if rank != 4 or not isinstance(axes, (list, tuple)) or sorted(int(str(axis)) % rank for axis in axes) != [2, 3]:
        return None
    if node.kwargs.get("dtype") not in (None, source.meta["val"].dtype):  # type: ignore[union-attr]
        return None
    pooled = insert(graph, node, _aten.adaptive_avg_pool2d.default, (source, [1, 1]))
    return pooled if keep else insert(graph, node, _aten.flatten.using_ints, (pooled, 1))


def _pad(graph: GraphModule, node: Node) -> Node | None:
    """Padding by a constant under its own name; by reflection or repetition it stays."""
    source, amounts, mode, value = [*node.args, "constant", None][:4] if len(node.args) < 4 else node.args[:4]
    mode, value = node.kwargs.get("mode", mode), node.kwargs.get("value", value)
    if mode != "constant":
        return None
    return insert(graph, node, _aten.constant_pad_nd.default, (source, amounts, value or 0.0))


def _padded_by_name(graph: GraphModule, node: Node) -> Node | None:
    """Padding "same" or "valid" as numbers; None where "same" needs more on one side than on the other."""
    arguments: list[Any] = [*node.args, *_CONV_DEFAULTS[len(node.args) :]]
    data, weight, bias, stride, padding, dilation, groups = arguments
    kernel = weight.meta["val"].shape[2:]
    spread = [rate * (int(size) - 1) for rate, size in zip(_pair(dilation), kernel, strict=True)]
    if padding == "valid":
        spread = [0, 0]
    if any(amount % 2 for amount in spread):
        return None
    numbers = [amount // 2 for amount in spread]
    return insert(
        graph, node, _aten.conv2d.default, (data, weight, bias, _pair(stride), numbers, _pair(dilation), groups)
    )


_CONV_DEFAULTS: tuple[Any, ...] = (None, None, None, [1, 1], "valid", [1, 1], 1)


def _pair(values: list[int]) -> list[int]:
    return [values[0], values[-1]]


_LAYOUTS = {_aten.contiguous.default}

_REWRITES = {
    _aten.contiguous.default: _switched_off,
    _aten.dropout.default: _switched_off,
    _aten.feature_dropout.default: _switched_off,
    _aten.clamp.default: _clamp,
    _aten.clamp_min.default: _clamp_min,
    _aten.relu6.default: _relu6,
    _aten.silu.default: _silu,
    _aten.mean.dim: _mean,
    _aten.conv2d.padding: _padded_by_name,
    _aten.pad.default: _pad,
}


def _activation_before_max_pool(graph: GraphModule) -> None:
    """relu(max_pool(x)) as max_pool(relu(x)): equal, since both grow with x, and the ReLU can join a convolution."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in _MONOTONE:
            continue
        pool = node.args[0]
        if not isinstance(pool, Node) or pool.target is not _aten.max_pool2d.default or len(pool.users) > 1:
            continue
        activated = insert(graph, node, node.target, (pool.args[0], *node.args[1:]))
        node.replace_all_uses_with(insert(graph, node, pool.target, (activated, *pool.args[1:])))
        graph.graph.erase_node(node)
        graph.graph.erase_node(pool)
