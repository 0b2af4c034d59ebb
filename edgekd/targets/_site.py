"""One operator of a file and what stands around it, as the rules of the audit look at it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from edgekd.targets._graphview import GraphView
from edgekd.targets._kernels import ABSORBED, CARRIED

__all__ = ["Finding", "Site", "named"]

Finding = tuple[str, str]
"""A cause and its remedy."""


@dataclass(frozen=True)
class Site:
    """An operator in its graph, before the runtime's optimizations.

    Args:
        view: the graph.
        node: the operator.
        label: what reports call it.
        quantized: whether the file has any Q/DQ or 8-bit operator.
        signed_rewritten: whether the runtime rewrites signed activations to unsigned ones, as it does on x86.
    """

    view: GraphView
    node: onnx.NodeProto
    label: str
    quantized: bool
    signed_rewritten: bool

    def activation_behind(self) -> onnx.NodeProto | None:
        """The ReLU or clip that alone takes the operator's result."""
        users = self.view.consumers(self.node.output[0])
        alone = len(users) == 1 and self.node.output[0] not in self.view.graph_outputs
        return users[0] if alone and users[0].op_type in ABSORBED else None

    def result(self) -> tuple[str, list[onnx.NodeProto]]:
        """The tensor behind the operator and the activation that it may absorb, and who takes it."""
        output = (self.activation_behind() or self.node).output[0]
        return output, self.view.consumers(output)

    def quantizer_behind(self, output: str) -> onnx.NodeProto | None:
        """The Q on an output of the operator; an activation and moves that a Q is carried across may come before."""
        users = self.result()[1] if output == self.node.output[0] else self.view.consumers(output)
        while len(users) == 1 and users[0].op_type in CARRIED:
            moved = users[0].output[0]
            users = self.view.consumers(moved) if moved not in self.view.graph_outputs else []
            if any(user.op_type not in CARRIED | {"QuantizeLinear"} for user in users):
                return None  # a Q is carried only where nothing else reads
        return next((user for user in users if user.op_type == "QuantizeLinear"), None)


def named(node: onnx.NodeProto) -> str:
    """An operator as a message calls it.

    >>> named(onnx.helper.make_node("Relu", ["x"], ["y"]))
    "Relu 'y'"
    """
    return f"{node.op_type} '{node.name or node.output[0]}'"
