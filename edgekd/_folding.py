"""Batch normalisation folded away: into the operator before it, or into a depthwise convolution of its own.

With its statistics fixed, batch normalisation is one factor and one offset per channel. Folding keeps the
network's own eps, shares what the network shares, and leaves an operator alone whose plain result somebody else
reads. What cannot fold becomes a 1x1 depthwise convolution: its weights, one per channel, are exact on an int8 grid
of one scale per channel, so a normalisation behind an addition runs as int8 too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgekd._normal_form import insert

__all__ = ["fold_batch_norm"]

_aten = torch.ops.aten

_FOLDS = {_aten.conv1d.default, _aten.conv2d.default, _aten.linear.default}
_Done = dict[tuple[object, ...], tuple[Node, Node]]
"""What was folded already, by what it was folded from: shared layers stay shared."""

_TRANSPOSED = {_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input}


@dataclass(frozen=True)
class _Norm:
    """A batch normalisation with fixed statistics.

    Args:
        node: where it stands.
        source: what it reads.
        factor: gamma / sqrt(variance + eps), shape (C,), float64.
        offset: beta - mean * factor, shape (C,), float64.
        name: its module's.
    """

    node: Node
    source: Node
    factor: Tensor
    offset: Tensor
    name: str

    @property
    def rank(self) -> int:
        """Number of dimensions of what it reads."""
        return int(self.source.meta["val"].ndim)


def fold_batch_norm(graph: GraphModule) -> None:
    """Remove every batch normalisation with fixed statistics from an exported graph, in place.

    A tap that reads the operator in front of a folded one gets that operator's own values back by the inverse
    factor and offset. Transposed and three-dimensional convolutions are left to torchao.
    """
    done: _Done = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not _aten.batch_norm.default or node.args[5]:
            continue
        norm = _read(graph, node)
        if _folds(norm):
            _fold(graph, norm, done)
        elif norm.rank <= 4 and not (norm.source.target in _TRANSPOSED and len(norm.source.users) == 1):
            _as_convolution(graph, norm, done)
        else:
            continue
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _read(graph: GraphModule, node: Node) -> _Norm:
    source, gamma, beta, mean, variance, _, _, eps = node.args[:8]
    if not all(isinstance(one, Node) for one in (source, mean, variance)):
        raise TypeError(f"batch normalisation '{node.name}' has no fixed statistics")
    mean_value, variance_value = _constant(graph, mean), _constant(graph, variance)
    factor = (variance_value + float(str(eps))).rsqrt()
    if isinstance(gamma, Node):
        factor = factor * _constant(graph, gamma)
    offset = -mean_value * factor
    if isinstance(beta, Node):
        offset = offset + _constant(graph, beta)
    return _Norm(node, source, factor, offset, str(mean.target).rpartition(".")[0])  # type: ignore[arg-type, union-attr]


def _constant(graph: GraphModule, node: object) -> Tensor:
    """The value that a get_attr node reads, float64."""
    owner, name = _place(graph, str(node.target))  # type: ignore[attr-defined]
    value: Tensor = getattr(owner, name)
    return value.detach().double()


def _place(graph: GraphModule, target: str) -> tuple[nn.Module, str]:
    path, _, name = target.rpartition(".")
    return graph.get_submodule(path), name


def _folds(norm: _Norm) -> bool:
    """Whether the operator in front may take the normalisation: nothing else but taps reads it."""
    if norm.source.target not in _FOLDS or (norm.source.target is _aten.linear.default and norm.rank != 2):
        return False
    others = [user for user in norm.source.users if user is not norm.node]
    invertible = bool((norm.factor != 0).all())
    return not others or (invertible and all(user.op == "output" for user in others))


def _fold(graph: GraphModule, norm: _Norm, done: _Done) -> None:
    source = norm.source
    weight, bias = source.args[1], source.args[2] if len(source.args) > 2 else None
    if not isinstance(weight, Node):
        raise TypeError(f"'{source.name}' has no weight to fold into")
    key = (weight, bias, *norm.node.args[1:5], norm.node.args[7])
    if key not in done:
        values = _constant(graph, weight)
        scaled = values * norm.factor.view(-1, *[1] * (values.ndim - 1))
        added = norm.offset + (_constant(graph, bias) * norm.factor if isinstance(bias, Node) else 0.0)
        owner = str(weight.target).rpartition(".")[0]
        # a weight that is read elsewhere too must stay what it is there
        shared = len(weight.users) > 1 or (isinstance(bias, Node) and len(bias.users) > 1)
        done[key] = (
            _attribute(graph, str(weight.target), scaled, like=weight, fresh=shared),
            _attribute(graph, f"{owner}.bias", added, like=weight, fresh=shared),
        )
    source.args = (source.args[0], *done[key], *source.args[3:])
    _restore_taps(graph, norm)
    norm.node.replace_all_uses_with(source)


def _restore_taps(graph: GraphModule, norm: _Norm) -> None:
    """Give the taps of the operator in front its own values: (folded - offset) / factor."""
    readers = [user for user in norm.source.users if user.op == "output"]
    shape = (-1, *[1] * (norm.rank - 2))
    for output in readers:
        value = norm.source
        for name, target, constant in (
            ("tap_offset", _aten.sub.Tensor, norm.offset),
            ("tap_factor", _aten.div.Tensor, norm.factor),
        ):
            operand = _attribute(
                graph, f"{norm.name}.{name}", constant.view(shape), like=norm.node, fresh=False, trained=False
            )
            value = insert(graph, output, target, (value, operand))
        output.replace_input_with(norm.source, value)


def _attribute(graph: GraphModule, name: str, values: Tensor, *, like: Node, fresh: bool, trained: bool = True) -> Node:
    """Store values in the graph and read them at its start; `fresh` takes another name where this one is in use."""
    owner, leaf = _place(graph, name)
    prefix, count = name.removesuffix(leaf), 1
    while fresh and hasattr(owner, leaf):
        leaf, count = f"{name.rpartition('.')[2]}_{count}", count + 1
    stored = values.to(like.meta["val"].dtype).contiguous()
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    if trained:
        owner.register_parameter(leaf, nn.Parameter(stored))
    else:
        owner.register_buffer(leaf, stored)
    with graph.graph.inserting_before(next(iter(graph.graph.nodes))):
        node = graph.graph.get_attr(prefix + leaf)
    node.meta["val"] = like.meta["val"].fake_mode.from_tensor(getattr(owner, leaf), static_shapes=True)
    return node


def _as_convolution(graph: GraphModule, norm: _Norm, done: _Done) -> None:
    key = (norm.name, norm.node.args[7])
    if key not in done:
        channels = len(norm.factor)
        done[key] = (
            _attribute(graph, f"{norm.name}.factor", norm.factor.view(channels, 1, 1, 1), like=norm.node, fresh=False),
            _attribute(graph, f"{norm.name}.offset", norm.offset, like=norm.node, fresh=False),
        )
    value = norm.source
    for _ in range(4 - norm.rank):
        value = insert(graph, norm.node, _aten.unsqueeze.default, (value, -1))
    arguments = (value, *done[key], [1, 1], [0, 0], [1, 1], len(norm.factor))
    value = insert(graph, norm.node, _aten.conv2d.default, arguments)
    if norm.rank < 4:
        value = insert(graph, norm.node, _aten.squeeze.dims, (value, list(range(norm.rank, 4))))
    norm.node.replace_all_uses_with(value)
