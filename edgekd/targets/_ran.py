"""The graph that ONNX Runtime really runs, and which of its nodes stand for which node of the file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import onnx

from edgekd.targets._element_types import FLOAT_TYPES, element_types
from edgekd.targets._graphview import GraphView, inner_graphs
from edgekd.targets._kernels import BOUNDARIES, CONTROL, REORDERS, STRUCTURE, WEIGHTED, is_int8_operator

__all__ = ["Ran", "RanNode", "Work", "all_graphs", "mark", "runs_as_int8"]

Work = Literal["int8", "float", "conversion", "other"]
"""What a node of the optimized graph does.

    int8        computes on 8-bit data, or moves it
    float       computes on floats, or moves them
    conversion  Q, DQ, and changes of layout or type that the runtime put in
    other       shapes, indices, conditions, and operators that only hold a body
"""

_EIGHT_BIT = frozenset({"int8", "uint8"})
_CHANGES = frozenset({"Transpose", "Cast"})
"""Of layout and type: what the runtime puts in by itself."""
_MARK = re.compile(r"edgekd(\d+)_")


@dataclass(frozen=True)
class RanNode:
    """A node of the optimized graph.

    Args:
        name: unique in the graph and all its bodies.
        op: its type.
        number: of the file's node that it stands for, None for what the runtime put in.
        work: what it does.
    """

    name: str
    op: str
    number: int | None
    work: Work


class Ran:
    """What became of the nodes of a file.

    Args:
        optimized: the graph that the runtime made of the marked file; its nodes are renamed here.
        views: the file's graphs.
    """

    def __init__(self, optimized: onnx.ModelProto, views: Sequence[GraphView]) -> None:
        self.model = optimized
        self._file = [(view, node) for view in views for node in view.nodes]
        self._number = {id(node): number for number, (_, node) in enumerate(self._file)}
        self._main = views[0]
        types = element_types(optimized.graph)
        graphs = list(all_graphs(optimized.graph))
        constants = frozenset(tensor.name for graph in graphs for tensor in graph.initializer)
        self.nodes: list[RanNode] = []
        self._int8: dict[int, bool] = {}
        self._ops: dict[int, str] = {}
        self._taken_apart: set[int] = set()
        held = [list(graph.node) for graph in graphs]
        marks = {id(node): number for nodes in held for node in nodes if (number := self._marked(node)) is not None}
        for nodes in held:
            for node, number in zip(nodes, self._numbers_of(nodes, marks), strict=True):
                self._add(node, number, types, constants)

    @property
    def operators(self) -> Counter[str]:
        """How often each type runs."""
        return Counter(node.op for node in self.nodes)

    def kind(self, number: int) -> bool | None:
        """Whether the node that stands for a node of the file is int8.

        None when there is none: it was removed, or became part of a float operator of another kind, as the product
        in an activation function that the runtime puts together again.
        """
        found = self._standing(number)
        if found is None:
            return None
        of_its_kind = self._ops[found] == self._file[found][1].op_type
        product = self._file[number][1].op_type in WEIGHTED
        return self._int8[found] if self._int8[found] or of_its_kind or product else None

    def float_nodes(self, told: Container[int]) -> Iterator[tuple[list[str], str]]:
        """(names, type) of what runs in float, but for the file's nodes whose numbers are `told` already.

        An operator that was taken apart is there once, under its own type.
        """
        apart: dict[int, list[str]] = {}
        for node in self.nodes:
            if node.work != "float" or (node.number is not None and node.number in told):
                continue
            if node.number in self._taken_apart and node.number is not None:
                apart.setdefault(node.number, []).append(node.name)
            else:
                yield [node.name], node.op
        yield from ((names, self._file[number][1].op_type) for number, names in apart.items())

    def _add(self, node: onnx.NodeProto, number: int | None, types: Mapping[str, str], stored: frozenset[str]) -> None:
        work = _work(node, number, types, stored)
        if number is not None:
            self._int8[number] = self._int8.get(number, False) or work == "int8"
            self._ops[number] = node.op_type
        node.name = f"ran{len(self.nodes)}"
        self.nodes.append(RanNode(node.name, node.op_type, number, work))

    def _numbers_of(self, nodes: Sequence[onnx.NodeProto], marks: Mapping[int, int]) -> list[int | None]:
        """The file's number of each node of one optimized graph.

        Args:
            nodes: of the graph.
            marks: the number that a node of any graph tells itself, by the node's identity.
        """
        made = self._made(set(marks.values()))
        apart = {name: one for name, one in made.items() if _is_composed(self._file[one][1])}
        found: list[int | None] = []
        leads_to: dict[str, int] = {}  # tensors on the way out of an operator that was taken apart
        for node in reversed(nodes):
            number = marks.get(id(node))
            if number is None:
                leads_to |= {name: apart[name] for name in node.output if name in apart}
                target = next((leads_to[name] for name in node.output if name in leads_to), None)
                if not node.name:  # the inside of an operator; the runtime names what else it puts in
                    number = target
                    self._taken_apart |= {target} if target is not None else set()
                elif node.op_type not in _CHANGES | BOUNDARIES:  # several operators that became one
                    number = next((made[name] for name in node.output if name in made), None)
            else:
                target = next((apart[name] for name in self._file[number][1].input if name in apart), None)
            if target is not None:
                leads_to |= {name: target for name in node.input if name}
            found.append(number)
        return found[::-1]

    def _made(self, there: set[int]) -> dict[str, int]:
        """By the tensor that it makes, the number of each node of the file that is not `there` any more."""
        return {
            name: number
            for number, (_, node) in enumerate(self._file)
            if number not in there
            for name in node.output
            if name
        }

    def _marked(self, node: onnx.NodeProto) -> int | None:
        """The number that a node of the optimized graph tells by its name."""
        if mark := _MARK.search(node.name):
            return int(mark[1])
        # blocked-layout float convolutions are named by the tensor they make, behind the activation they took over
        made = self._main.producer(node.name.removesuffix("_nchwc")) if node.domain.endswith(".nchwc") else None
        while made is not None and made.op_type != node.op_type:
            made = self._main.producer(made.input[0])
        return None if made is None else self._number[id(made)]

    def _standing(self, number: int) -> int | None:
        view, node = self._file[number]
        while self._number[id(node)] not in self._int8:
            users = view.consumers(node.output[0])
            # fused into what follows, as a matrix product with its bias: then that one tells
            if len(users) != 1 or users[0].op_type in BOUNDARIES or inner_graphs(users[0]):
                return None
            node = users[0]
        return self._number[id(node)]


def mark(number: int) -> str:
    """The name that a node of the file is given, so that it can be found again."""
    return f"edgekd{number}_"


def runs_as_int8(node: onnx.NodeProto, types: Mapping[str, str], constants: Iterable[str]) -> bool:
    """Whether a node of an optimized graph computes on 8-bit data; Q and DQ nodes do not compute."""
    if node.op_type in BOUNDARIES:
        return False
    stored = constants if isinstance(constants, frozenset) else frozenset(constants)
    return any(types.get(name) in _EIGHT_BIT for name in node.input if name and name not in stored)


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and every body inside it, at any depth."""
    yield graph
    for node in graph.node:
        for body in inner_graphs(node):
            yield from all_graphs(body)


def _work(node: onnx.NodeProto, number: int | None, types: Mapping[str, str], stored: frozenset[str]) -> Work:
    if node.op_type in BOUNDARIES | REORDERS or (number is None and node.op_type in _CHANGES):
        return "conversion"
    if node.op_type in CONTROL:
        return "other"
    if is_int8_operator(node) or runs_as_int8(node, types, stored):
        return "int8"
    floats = any(types.get(name, "") in FLOAT_TYPES for name in node.output if name)
    return "float" if floats and node.op_type not in STRUCTURE else "other"


def _is_composed(node: onnx.NodeProto) -> bool:
    """Whether ONNX defines an operator by simpler ones, into which a runtime without a kernel takes it apart."""
    return node.domain in ("", "ai.onnx") and node.op_type in _composed()


@cache
def _composed() -> frozenset[str]:
    return frozenset(schema.name for schema in onnx.defs.get_function_ops())
