"""The mixtures of int8 and float that a prepared graph can become, as the target's rules have them.

Which Q/DQ pairs are left when groups go back to float is the target's own decision: its rules are asked again, on the
graph without quantizers. What they no longer want is read past its quantizer. That holds for each reader of a tensor
apart: behind a float operator, an int8 reader takes codes while a float reader beside it takes the values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch.fx import Graph, GraphModule, Node
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgekd.calibration._base import Calibrator
from edgekd.errors import UsageError
from edgekd.spec import Options
from edgekd.targets._annotate import TargetQuantizer
from edgekd.targets._base import Numerics
from edgekd.targets._groups import Group, behind_quantizers, groups, live_nodes, operator_of

__all__ = ["Edge", "Mixtures", "Plan", "elements"]

Edge = tuple[Node, Node]
"""A tensor and one of its readers."""


@dataclass(frozen=True)
class Plan:
    """One mixture of int8 and float.

    Args:
        int8: names of the groups that run as int8, in the order of execution.
        edges: where a tensor is read as codes.
        outputs: nodes with a Q behind them, whoever reads.
    """

    int8: tuple[str, ...]
    edges: frozenset[Edge]
    outputs: frozenset[Node]


class Mixtures:
    """The groups of a prepared graph, and what is left on a grid when some of them are float.

    Args:
        graph: from `quantize.prepare`; it is not changed.
        numerics: what it was prepared for.

    Raises:
        UsageError: the graph has no int8 group.
    """

    def __init__(self, graph: GraphModule, *, numerics: Numerics) -> None:
        self._numerics = numerics
        self.chains: dict[Edge, tuple[str, ...]] = {}
        """By edge of the graph without quantizers, the quantizers on it."""
        self.plain, self._names = self._without_quantizers(graph)
        self.nodes = [node for node in self.plain.graph.nodes if node.op != "output"]
        self.output = next(node for node in self.plain.graph.nodes if node.op == "output")
        self.logits: Node = self.output.args[0][0]
        self.groups: Mapping[str, Group] = {group.name: group for group in groups(self.plain)}
        self.base = self._as_prepared(graph)
        self._float_from_start = [name for name in self._marked(()).int8 if name not in self.base.int8]
        if not self.base.int8:
            raise UsageError("The prepared graph has no int8 layer; there is nothing to put to float.")

    def plan(self, floats: Collection[str]) -> Plan:
        """The mixture with these groups in float too; a group that then feeds nobody's codes follows them.

        Args:
            floats: names or patterns, as `quantize.float_layers` has them.

        Raises:
            UsageError: a name that no group has.
        """
        return self._marked((*self._float_from_start, *floats)) if floats else self.base

    def only(self, name: str) -> Plan:
        """The mixture in which one group alone is int8, with the pairs on its inputs and its output."""
        group = self.groups[name]
        quantized = group.end in self.base.outputs
        edges = {edge for edge in self.base.edges if edge[1] is group.node or (quantized and edge[0] is group.end)}
        return Plan((name,), frozenset(edges), frozenset({group.end} & self.base.outputs))

    def without_output(self, name: str) -> Plan:
        """The mixture in which a group's output, and whatever only moves its values, keeps its floats."""
        tensors = {self.groups[name].end, *self._moved(self.groups[name].end)}
        edges = {edge for edge in self.base.edges if edge[0] not in tensors}
        return Plan(self.base.int8, frozenset(edges), self.base.outputs - tensors)

    def readers(self, name: str) -> tuple[str, ...]:
        """The int8 groups that take a group's output as codes, in the order of execution."""
        end = self.groups[name].end
        tensors = {end, *self._moved(end)}
        if end not in self.base.outputs:
            return ()
        taking = {reader for tensor, reader in self.base.edges if tensor in tensors}
        return tuple(one for one in self.base.int8 if self.groups[one].node in taking)

    @property
    def in_float(self) -> Plan:
        """The mixture without int8."""
        return Plan((), frozenset(), frozenset())

    def conversions(self, plan: Plan) -> tuple[int, int]:
        """Elements per sample that are turned into codes, and back into floats, at the borders of a mixture."""
        int8 = {node for name in plan.int8 for node in (self.groups[name].node, self.groups[name].end)}
        to_codes = {tensor for tensor, _ in plan.edges if tensor not in plan.outputs and tensor.op != "get_attr"}
        to_floats = {
            tensor
            for tensor in plan.outputs
            if any(reader not in int8 and reader not in plan.outputs for reader in tensor.users)
        }
        return sum(map(elements, to_codes)), sum(map(elements, to_floats))

    def kept(self, plan: Plan) -> tuple[set[tuple[str, str]], set[str]]:
        """The edges and outputs of a mixture by the names that the nodes have in the prepared graph."""
        names = self._names
        return {(names[tensor], names[reader]) for tensor, reader in plan.edges}, {names[one] for one in plan.outputs}

    def _moved(self, tensor: Node) -> Iterator[Node]:
        """The tensors on a grid that hold a tensor's values in another shape or place."""
        for reader in tensor.users:
            operator = operator_of(reader)
            if operator is not None and operator.role == "move" and reader in self.base.outputs:
                yield reader
                yield from self._moved(reader)

    def _without_quantizers(self, graph: GraphModule) -> tuple[GraphModule, dict[Node, str]]:
        """A copy of what the logits depend on, and what each node is called in the prepared graph."""
        plain, live = Graph(), live_nodes(graph)
        copies: dict[Node, Node] = {}
        for node in graph.graph.nodes:
            if node.op in ("call_module", "output") or node not in live:
                continue
            copies[node] = plain.node_copy(node, lambda one: copies[behind_quantizers(one)])
            self._note_chains(node, copies, copies[node])
        output = next(node for node in graph.graph.nodes if node.op == "output")
        logits = output.args[0][0]
        ends = plain.output((copies[behind_quantizers(logits)],))
        if logits.op == "call_module":
            self.chains[copies[behind_quantizers(logits)], ends] = _chain(logits)
        names = {copied: node.name for node, copied in copies.items()}
        return GraphModule(graph, plain), names | {ends: output.name}

    def _note_chains(self, reader: Node, copies: Mapping[Node, Node], copied: Node) -> None:
        for read in reader.all_input_nodes:
            if read.op == "call_module":
                self.chains[copies[behind_quantizers(read)], copied] = _chain(read)

    def _as_prepared(self, graph: GraphModule) -> Plan:
        """Every quantizer that the graph has, and what its own annotations say."""
        found = {node.name: node.meta.get(Q_ANNOTATION_KEY) for node in graph.graph.nodes}
        annotated = {node: found[self._names[node]] for node in self.nodes}
        outputs = {node for node, note in annotated.items() if note is not None and note.output_qspec is not None}
        int8 = tuple(name for name, group in self.groups.items() if annotated[group.node] is not None)
        return Plan(int8, frozenset(self.chains), frozenset(outputs))

    def _marked(self, floats: Collection[str]) -> Plan:
        """What the target's rules want of the graph with these groups in float."""
        for node in self.nodes:
            node.meta.pop(Q_ANNOTATION_KEY, None)
        rules = TargetQuantizer(
            self._numerics, calibrator=Calibrator(Options()), reduce_range=False, float_layers=tuple(floats)
        )
        rules.annotate(self.plain)
        notes = {node: node.meta[Q_ANNOTATION_KEY] for node in self.nodes if Q_ANNOTATION_KEY in node.meta}
        outputs = frozenset(node for node, note in notes.items() if note.output_qspec is not None)
        edges = frozenset(
            (tensor, reader)
            for tensor, reader in self.chains
            if tensor in outputs or (reader in notes and tensor in notes[reader].input_qspec_map)
        )
        return Plan(tuple(name for name, group in self.groups.items() if group.node in notes), edges, outputs)


def _chain(read: Node) -> tuple[str, ...]:
    """The quantizers between a tensor and who reads it, in the order in which values go through them."""
    names: list[str] = []
    while read.op == "call_module" and read.all_input_nodes:
        names.append(str(read.target))
        read = read.all_input_nodes[0]
    return tuple(reversed(names))


def elements(node: Node) -> int:
    """Elements of a value for one sample; its first dimension is the batch."""
    count = 1
    for size in node.meta["val"].shape[1:]:
        count *= int(size)
    return count
