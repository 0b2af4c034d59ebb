"""Compute any mixture of int8 and float that a prepared graph can become, without exporting or preparing it again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgekd._plans import Mixtures, Plan, elements
from edgekd.calibration._fake_quantize import ActivationQuantizer, quantizers
from edgekd.errors import UsageError
from edgekd.targets._base import Numerics
from edgekd.targets._groups import Group

__all__ = ["Plan", "Switchboard", "Values"]

Values = dict[Node, Any]
"""What nodes gave for one batch."""


class Switchboard(Mixtures):
    """The groups of a calibrated graph, each of which can be put to float and the network computed.

    Args:
        graph: from `quantize.prepare`, calibrated or trained. It is not changed; its weights and ranges must not change
            while this is in use.
        numerics: what it was prepared for.

    Raises:
        UsageError: the graph was never calibrated, has no int8 group, or has an operator that writes into its input.
    """

    def __init__(self, graph: GraphModule, *, numerics: Numerics) -> None:
        super().__init__(graph, numerics=numerics)
        self._graph = graph
        self._modules = dict(graph.named_modules(remove_duplicate=False))
        ends = {group.end for group in self.groups.values()}
        self.borders = frozenset(node for node in self.nodes if node in ends or not self._stays_inside(node))
        """The nodes whose values `changed` may ask for, and the ends of groups."""
        self._last_reader = _last_readers(self.nodes)
        self._weights: dict[tuple[Node, tuple[str, ...]], Tensor] = {}
        self._constants: Values = {
            node: _attribute(graph, str(node.target)) for node in self.nodes if node.op == "get_attr"
        }
        self._check()

    @property
    def kept_elements(self) -> int:
        """Elements of all values in `borders`, per sample."""
        kept = (node for node in self.borders if node.op != "get_attr" and isinstance(node.meta.get("val"), Tensor))
        return max(1, sum(elements(node) for node in kept))

    def forward(self, plan: Plan) -> Callable[[Tensor], Tensor]:
        """A function from inputs (B, C, H, W) to logits (B, K), as the mixture computes them, without gradients."""

        def run(inputs: Tensor) -> Tensor:
            logits: Tensor = self.values(inputs, plan, keep=(self.logits,))[self.logits]
            return logits

        return run

    def values(self, inputs: Tensor, plan: Plan, *, keep: Collection[Node]) -> Values:
        """What the nodes in `keep` give for one batch, before their own Q; the others are dropped on the way."""
        source = next(node for node in self.nodes if node.op == "placeholder")
        return self._execute({source: inputs}, plan, self.nodes, keep)

    def changed(self, known: Values, plans: tuple[Plan, Plan], *, keep: Collection[Node]) -> Values:
        """What nodes give in another mixture, computed from the first place on where it differs.

        Args:
            known: the values of `borders` in the first mixture.
            plans: the first and the other one.
            keep: the nodes wanted; those that the change does not reach are left out.
        """
        differing = {reader for _, reader in plans[0].edges ^ plans[1].edges}
        order = []
        for node in self.nodes:
            if node in differing or any(one in differing for one in node.all_input_nodes):
                differing.add(node)
                order.append(node)
        return self._execute(known, plans[1], order, keep)

    def result(self, group: Group, plan: Plan, values: Values) -> Tensor:
        """What a group hands on: its last node's value, behind its Q where the plan has one."""
        value: Tensor = values[group.end]
        if group.end not in plan.outputs:
            return value
        reader = next(reader for tensor, reader in plan.edges if tensor is group.end)
        with _frozen(self._graph):
            return self._rounded(value, self.chains[group.end, reader])

    def weight(self, group: Group, plan: Plan) -> tuple[Tensor, Tensor] | None:
        """A group's weight and what its codes stand for; None where it has no weight on a grid."""
        found = [edge for edge in plan.edges if edge[1] is group.node and edge[0].op == "get_attr"]
        if group.operator.role != "weighted" or not found:
            return None
        value: Tensor = self._constants[found[0][0]].detach()
        with _frozen(self._graph):
            return value, self._rounded(value, self.chains[found[0]])

    def _check(self) -> None:
        activations = [one for _, one in quantizers(self._graph) if isinstance(one, ActivationQuantizer)]
        if activations and all(float(one.minimum) == float(one.maximum) == 0.0 for one in activations):
            raise UsageError("The prepared graph was never calibrated. Call quantize.calibrate first.")
        for node in self.nodes:
            if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
                # what a mixture computes from is kept and used again for the next one
                raise UsageError(
                    f"The operator '{node.name}' ({node.target}) writes into its input, so layers cannot be switched"
                    " one by one. Write it without the trailing underscore in the model."
                )

    def _execute(self, known: Values, plan: Plan, order: Iterable[Node], keep: Collection[Node]) -> Values:
        made: Values = {}
        rounded: dict[tuple[Node, tuple[str, ...]], Tensor] = {}

        def read(tensor: Node, reader: Node) -> Any:
            if tensor.op == "get_attr":
                value = self._constants[tensor]
            else:
                value = made[tensor] if tensor in made else known[tensor]
            if (tensor, reader) not in plan.edges:
                return value
            key = (tensor, self.chains[tensor, reader])
            store = self._weights if tensor.op == "get_attr" else rounded
            if key not in store:
                store[key] = self._rounded(value, key[1])
            return store[key]

        with torch.no_grad(), _frozen(self._graph):
            for node in order:
                if node.op == "call_function":
                    taken = {one: read(one, node) for one in node.all_input_nodes}
                    arguments: Any = map_arg((node.args, node.kwargs), taken.__getitem__)
                    made[node] = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
                elif node.op == "placeholder":
                    made[node] = known[node]
                _forget(self._last_reader.get(node, ()), keep, made, rounded)
            if self.logits in made:
                made[self.logits] = self._handed_out(made[self.logits], plan)
        return {node: made[node] for node in keep if node in made}

    def _stays_inside(self, node: Node) -> bool:
        """Whether a value is read by one node only, which reads nothing else and never through a quantizer.

        Where it changes that reader changes, and where it does not that reader does not: nobody asks for it again.
        """
        if len(node.users) != 1 or node is self.logits:
            return False
        reader = next(iter(node.users))
        return reader.all_input_nodes == [node] and (node, reader) not in self.chains

    def _handed_out(self, logits: Tensor, plan: Plan) -> Tensor:
        edge = (self.logits, self.output)
        return self._rounded(logits, self.chains[edge]) if edge in plan.edges else logits

    def _rounded(self, value: Tensor, chain: tuple[str, ...]) -> Tensor:
        with torch.no_grad():
            for name in chain:
                value = self._modules[name](value)
        return value


def _last_readers(nodes: Iterable[Node]) -> dict[Node, list[Node]]:
    """By node, the values that nobody reads after it."""
    last: dict[Node, Node] = {}
    for node in nodes:
        last[node] = node
        last |= dict.fromkeys(node.all_input_nodes, node)
    found: dict[Node, list[Node]] = {}
    for value, reader in last.items():
        found.setdefault(reader, []).append(value)
    return found


def _forget(
    done: Iterable[Node], keep: Collection[Node], made: Values, rounded: dict[tuple[Node, tuple[str, ...]], Tensor]
) -> None:
    """Drop values that nobody will read any more, with and without their Q."""
    gone = {node for node in done if node not in keep}
    for node in gone:
        made.pop(node, None)
    for key in [key for key in rounded if key[0] in gone]:
        del rounded[key]


def _attribute(graph: GraphModule, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), graph)


@contextmanager
def _frozen(graph: GraphModule) -> Iterator[None]:
    """All quantizers simulate int8 with ranges that stand still; afterwards each is as it was."""
    phases = [(one, one.phase) for _, one in quantizers(graph)]
    for quantizer, _ in phases:
        quantizer.phase = "frozen"
    try:
        yield
    finally:
        for quantizer, phase in phases:
            quantizer.phase = phase
