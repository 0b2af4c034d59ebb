"""A prepared graph with some groups put back to float, as a graph of its own: to be trained, converted, exported."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch.fx import Graph, GraphModule, Node
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgekd._plans import Mixtures
from edgekd._quiet import quiet
from edgekd.targets._base import Numerics
from edgekd.targets._groups import behind_quantizers

__all__ = ["float_twin", "floated"]


def floated(graph: GraphModule, float_layers: Collection[str], *, numerics: Numerics) -> GraphModule:
    """The graph that `quantize.prepare` would give with these float layers, made from one that is prepared already.

    Export and preparation are not repeated, weights and ranges stay: it computes at once, and can be trained on,
    converted and exported like the one that it comes from. Its quantizers keep their names, so that its state is a
    part of that graph's.

    Args:
        graph: from `quantize.prepare`, calibrated or trained; it is not changed.
        float_layers: names or patterns, as `quantize.float_layers` has them.
        numerics: what the graph was prepared for.

    Raises:
        UsageError: a name that no layer has, or a graph without int8 layers.
    """
    mixtures = Mixtures(graph, numerics=numerics)
    edges, outputs = mixtures.kept(mixtures.plan(float_layers))
    with quiet():
        twin = copy.deepcopy(graph)
    for reader in twin.graph.nodes:
        for read in reader.all_input_nodes if reader.op != "call_module" else ():
            tensor = behind_quantizers(read)
            if read is not tensor and tensor.name not in outputs and (tensor.name, reader.name) not in edges:
                reader.replace_input_with(read, tensor)
        _keep_marks(reader, edges, outputs)
    _drop_quantizers(twin)
    return twin


def float_twin(graph: GraphModule, *, numerics: Numerics) -> GraphModule:
    """The float network inside a prepared graph, giving logits only, with every operator under the same name.

    Args:
        graph: from `quantize.prepare`; it is not changed.
        numerics: what it was prepared for.
    """
    plain = Mixtures(graph, numerics=numerics).plain
    copies: dict[Node, Node] = {}
    rewritten = Graph()
    logits = rewritten.graph_copy(plain.graph, copies)
    rewritten.output(logits[0])  # type: ignore[index]
    with quiet():
        return copy.deepcopy(GraphModule(plain, rewritten))


def _keep_marks(node: Node, edges: set[tuple[str, str]], outputs: set[str]) -> None:
    """Take from a node's annotation what is float now; the conversion reads the rest."""
    note = node.meta.get(Q_ANNOTATION_KEY)
    if note is None:
        return
    inputs: dict[Any, Any] = {one: spec for one, spec in note.input_qspec_map.items() if (one.name, node.name) in edges}
    output = note.output_qspec if node.name in outputs else None
    del node.meta[Q_ANNOTATION_KEY]
    if inputs or output is not None:
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=output, _annotated=True
        )


def _drop_quantizers(graph: GraphModule) -> None:
    """Remove the quantizers that nobody reads any more."""
    names = {str(node.target) for node in graph.graph.nodes if _is_quantizer(node)}
    for node in reversed(list(graph.graph.nodes)):
        if _is_quantizer(node) and not node.users:
            graph.graph.erase_node(node)
    for name in names - {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}:
        graph.delete_submodule(name)
    graph.recompile()


def _is_quantizer(node: Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith("activation_post_process")
