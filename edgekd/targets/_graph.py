"""An ONNX graph with an index of its constants, and the edits that passes are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

__all__ = ["Graph"]


class Graph:
    """An ONNX graph with its producers, readers and constants at hand."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self._lift_constant_nodes()
        # what a branch or a loop reads from outside must keep its name, as the model's outputs must
        self.outputs = {output.name for output in self.graph.output} | set(_captured(self.graph.node))

    def producer(self, name: str) -> NodeProto | None:
        """The node that computes `name`."""
        return next((node for node in self.graph.node if name in node.output), None)

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read `name`."""
        return [node for node in self.graph.node if name in node.input]

    def of_type(self, *types: str) -> list[NodeProto]:
        """A snapshot of the nodes of these types, so that the graph may change under the loop."""
        return [node for node in self.graph.node if node.op_type in types]

    def value(self, name: str) -> np.ndarray | None:
        """The constant called `name`, None if it is computed."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def free_name(self, name: str) -> str:
        """A name for a new tensor: this one, with a number where it is taken."""
        taken = {one for node in self.graph.node for one in (*node.input, *node.output)}
        taken |= {*self.constants, *(value.name for value in self.graph.input)}
        free, count = name, 0
        while free in taken:
            count += 1
            free = f"{name}_{count}"
        return free

    def add_constant(self, name: str, array: np.ndarray) -> str:
        """Add an initializer under a name that is still free; gives the name."""
        free = self.free_name(name)
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), free)
        self.graph.initializer.append(tensor)
        self.constants[free] = self.graph.initializer[-1]
        return free

    def insert_before(self, anchor: NodeProto, nodes: Iterable[NodeProto]) -> None:
        """Put nodes right before `anchor`."""
        position = next(i for i, node in enumerate(self.graph.node) if node is anchor or node == anchor)
        for offset, node in enumerate(nodes):
            self.graph.node.insert(position + offset, node)

    def bypass(self, node: NodeProto) -> None:
        """Remove a node by letting its readers read its first input."""
        source, result = node.input[0], node.output[0]
        if result in self.outputs:
            maker = self.producer(source)
            if maker is None or source in self.outputs:
                return  # a graph output must keep a maker of its own
            for reader in self.readers(source):
                _rename(reader.input, source, result)
            _rename(maker.output, source, result)
        else:
            for reader in self.readers(result):
                _rename(reader.input, result, source)
        self.graph.node.remove(node)

    def _lift_constant_nodes(self) -> None:
        for node in [node for node in self.graph.node if node.op_type == "Constant"]:
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            if tensor is None:
                continue
            tensor.name = node.output[0]
            self.graph.initializer.append(tensor)
            self.constants[tensor.name] = self.graph.initializer[-1]
            self.graph.node.remove(node)


def _captured(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Names that subgraphs of these nodes read; some of them are made inside, which does no harm."""
    for node in nodes:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from (name for inner in graph.node for name in inner.input)
                yield from (value.name for value in graph.output)
                yield from _captured(graph.node)


def _rename(names: object, old: str, new: str) -> None:
    for index, name in enumerate(names):  # type: ignore[arg-type, var-annotated]
        if name == old:
            names[index] = new  # type: ignore[index]
