"""Runs of layers between which nothing but channel-wise scaling-proof operators stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from edgekd.corrections._layers import Layer, layers

__all__ = ["Bound", "Link", "chains"]

_aten = torch.ops.aten

# f(c x) = c f(x) for c > 0, channel by channel
_ON_MAPS = {_aten.max_pool2d.default, _aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default}


@dataclass(frozen=True)
class Bound:
    """A ReLU6 or the like: what it reads, and where it cuts off."""

    source: Node
    high: float


@dataclass(frozen=True)
class Link:
    """Two layers of which the second alone reads the first, channel for channel."""

    first: Layer
    second: Layer
    bounds: tuple[Bound, ...]


def chains(graph: GraphModule) -> list[list[Link]]:
    """Runs of links whose inner layers are depthwise: pairs, and threes around a depthwise convolution.

    A layer may end one chain and start the next.
    """
    by_node = {layer.node: layer for layer in layers(graph)}
    links = {link.first.node: link for layer in by_node.values() if (link := _link(layer, by_node)) is not None}
    inner = {link.second.node for link in links.values() if link.second.depthwise and link.second.node in links}
    return [list(_run(start, links, inner)) for start in links if start not in inner]


def _run(start: Node, links: dict[Node, Link], inner: set[Node]) -> Iterator[Link]:
    link = links[start]
    yield link
    while link.second.node in inner:
        link = links[link.second.node]
        yield link


def _link(first: Layer, by_node: dict[Node, Layer]) -> Link | None:
    node, bounds, on_maps = first.node, [], first.convolution
    while True:
        if len(node.users) != 1:
            return None
        before, node = node, next(iter(node.users))
        if node in by_node:
            break
        if node.target is _aten.hardtanh.default and len(node.args) > 2 and node.args[1] in (0, 0.0):
            bounds.append(Bound(before, float(str(node.args[2]))))
        elif node.target is _aten.flatten.using_ints and on_maps and _one_value_a_channel(before, node):
            on_maps = False
        elif not (node.target is _aten.relu.default or (node.target in _ON_MAPS and on_maps)):
            return None
    second = by_node[node]
    fits = second.convolution == on_maps and second.inputs == first.outputs and node.args[0] is before
    return Link(first, second, tuple(bounds)) if fits else None


def _one_value_a_channel(maps: Node, flat: Node) -> bool:
    """Whether (B, C, 1, 1) becomes (B, C)."""
    shapes = maps.meta["val"].shape, flat.meta["val"].shape
    return len(shapes[1]) == 2 and shapes[0][1] == shapes[1][1]
