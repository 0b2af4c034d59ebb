"""The conversions that are left at run time: what each stands between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from edgekd.targets._kernels import BOUNDARIES, REORDERS
from edgekd.targets._ran import Ran, RanNode, all_graphs

__all__ = ["conversions"]


def conversions(ran: Ran) -> Iterator[tuple[RanNode, str]]:
    """Each Q, DQ and change of layout or type of the graph that ran, with the place where it stands."""
    known = {node.name: node for node in ran.nodes}
    for graph in all_graphs(ran.model.graph):
        places = _Places(graph, known)
        for node in graph.node:
            if known[node.name].work == "conversion":
                yield known[node.name], places.of(node)


class _Places:
    """Who makes and takes the tensors of one graph."""

    def __init__(self, graph: onnx.GraphProto, known: Mapping[str, RanNode]) -> None:
        self._known = known
        self._inputs = {value.name for value in graph.input}
        self._outputs = {value.name for value in graph.output}
        self._stored = {tensor.name for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._takers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._takers.setdefault(name, []).append(node)

    def of(self, node: onnx.NodeProto) -> str:
        """In words, short enough to count by."""
        if node.op_type in REORDERS or node.op_type not in BOUNDARIES:
            return "change of layout or type by the runtime"
        source, result = node.input[0], node.output[0]
        if node.op_type == "DequantizeLinear":
            if source in self._stored:
                return f"a constant of {self._taker(result)}, dequantized in every run"
            return "model output" if result in self._outputs else self._before(result)
        maker = self._makers.get(source)
        if maker is None:
            return "model input" if source in self._inputs else "a constant, or from an outer graph"
        if maker.op_type == "DequantizeLinear":
            return "from one grid to another, between two pairs in a row"
        return f"behind {self._described(maker)}"

    def _before(self, tensor: str) -> str:
        takers = self._takers.get(tensor, [])
        if takers and all(one.op_type == "QuantizeLinear" for one in takers):
            return "from one grid to another, between two pairs in a row"
        return f"in front of {self._taker(tensor)}"

    def _taker(self, tensor: str) -> str:
        takers = [one for one in self._takers.get(tensor, []) if one.op_type not in BOUNDARIES]
        return self._described(takers[0]) if takers else "a body inside"

    def _described(self, node: onnx.NodeProto) -> str:
        return f"{self._known[node.name].work} {node.op_type}"
