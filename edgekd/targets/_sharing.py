"""One initializer for all constants that are alike: a quantized graph repeats zero-points hundreds of times."""

from __future__ import annotations

from onnx import TensorProto

from edgekd.targets._graph import Graph

__all__ = ["share_constants"]


def share_constants(graph: Graph) -> int:
    """Let the nodes of the main graph read one initializer where several are equal, in place; gives how many went.

    Tensors that are outputs, or that a branch or a loop reads, keep a constant of their own.
    """
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    instead: dict[str, str] = {}
    for tensor in graph.graph.initializer:
        if tensor.name in graph.outputs or not tensor.raw_data or tensor.data_location == TensorProto.EXTERNAL:
            continue
        kept = first.setdefault((tensor.data_type, tuple(tensor.dims), tensor.raw_data), tensor.name)
        if kept != tensor.name:
            instead[tensor.name] = kept
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            if name in instead:
                node.input[index] = instead[name]
    left = [tensor for tensor in graph.graph.initializer if tensor.name not in instead]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(left)
    graph.constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    return len(instead)
