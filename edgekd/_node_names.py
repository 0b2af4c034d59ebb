"""Which operator of a file a node of the graph that ran stands for, in an int8 file and in its float twin."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from edgekd.devices._place import NodePlacement
from edgekd.targets._graphview import GraphView
from edgekd.targets._kernels import ABSORBED, BOUNDARIES, CARRIED, ELEMENTWISE, WEIGHTED

__all__ = ["FileNodes", "float_times", "meant_int8", "plain_name"]

_ADDED = ("_nchwc", "_nhwc", "_token")
_FUSED_BEHIND = frozenset({"Relu", "Clip", "Add", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "BatchNormalization"})
"""Operators that the runtime takes into the kernel of the weighted operator before them."""


def plain_name(name: str) -> str:
    """A node's name without what the runtime adds to it when it changes a layout.

    >>> plain_name("layer1.conv1_nchwc"), plain_name("fc_token_12"), plain_name("fc")
    ('layer1.conv1', 'fc', 'fc')
    """
    for suffix in _ADDED:
        head, found, tail = name.rpartition(suffix)
        if found and not tail.strip("_0123456789"):
            return head
    return name


class FileNodes:
    """The operators of an ONNX file, to be found by what the runtime calls them.

    A node that ran carries the name of the file's node, or, where its layout was changed, that of the tensor that it
    makes; an activation or an addition behind a convolution disappears into it and leaves it its tensor's name.

    Args:
        model: the file; only its graph is read.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._view = GraphView(model)
        self._by_name = {node.name: node for node in self._view.nodes if node.name}
        self._by_output = {name: node for node in self._view.nodes for name in node.output if name}
        self._order = {id(node): index for index, node in enumerate(self._view.nodes)}
        self.weighted = [node for node in self._view.nodes if node.op_type in WEIGHTED]
        self.has_quantizers = self._view.has_quantizers

    def find(self, executed: NodePlacement) -> onnx.NodeProto | None:
        """The file's node that a node of the graph that ran stands for; None for what the runtime put in."""
        name = plain_name(executed.node)
        node = self._by_name.get(name) or self._by_output.get(name)
        if node is None or node.op_type in WEIGHTED or not any(one in executed.op for one in WEIGHTED):
            return node
        return self._weighted_before(node) or node

    def is_meant_int8(self, node: onnx.NodeProto) -> bool:
        """Whether somebody put Q/DQ pairs around an operator, so that it should run on 8-bit data."""
        if node.op_type in WEIGHTED:
            return all(self._from_codes(name) for name in node.input[:2])
        if node.op_type not in ELEMENTWISE:
            return False
        return all(self._from_codes(name) for name in node.input if name) and self._becomes_codes(node.output[0])

    def _from_codes(self, tensor: str) -> bool:
        maker = self._view.producer(tensor)
        while maker is not None and maker.op_type in CARRIED:
            maker = self._view.producer(maker.input[0])
        return maker is not None and maker.op_type == "DequantizeLinear"

    def _becomes_codes(self, tensor: str) -> bool:
        takers = self._view.consumers(tensor)
        return bool(takers) and all(
            taker.op_type == "QuantizeLinear" or (taker.op_type in ABSORBED and self._becomes_codes(taker.output[0]))
            for taker in takers
        )

    def _weighted_before(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The last weighted operator that a chain of fused ones starts from."""
        found, open_ = [], [node]
        while open_:
            for name in open_.pop().input:
                maker = self._view.producer(name)
                if maker is None:
                    continue
                if maker.op_type in WEIGHTED:
                    found.append(maker)
                elif maker.op_type in _FUSED_BEHIND:
                    open_.append(maker)
        # of the two sides of an addition, the one computed last is the one whose kernel adds
        return max(found, key=lambda one: self._order[id(one)], default=None)


def meant_int8(nodes: Sequence[NodePlacement], file: FileNodes) -> frozenset[str]:
    """Names of the nodes that ran and that the file has as int8."""
    return frozenset(
        executed.node for executed in nodes if (node := file.find(executed)) is not None and file.is_meant_int8(node)
    )


def float_times(
    int8_nodes: Sequence[NodePlacement], float_nodes: Sequence[NodePlacement], int8: FileNodes, float32: FileNodes
) -> dict[str, float]:
    """Mean time in microseconds of the float counterpart, by the name of the node that ran in the int8 file.

    Weighted operators are counterparts by their order, where both files have the same ones; others by name.

    Args:
        int8_nodes, float_nodes: what ran of both files of one student.
        int8, float32: the files.
    """
    before: dict[str, float] = {}
    for executed in float_nodes:
        if (node := float32.find(executed)) is not None and executed.op not in BOUNDARIES:
            before[node.name] = before.get(node.name, 0.0) + executed.mean_us
    twins = {}
    if [node.op_type for node in int8.weighted] == [node.op_type for node in float32.weighted]:
        twins = {one.name: other.name for one, other in zip(int8.weighted, float32.weighted, strict=True)}
    found = {}
    for executed in int8_nodes:
        node = int8.find(executed)
        twin = None if node is None else twins.get(node.name, node.name if node.op_type not in WEIGHTED else None)
        if twin in before:
            found[executed.node] = before[twin]
    return found
