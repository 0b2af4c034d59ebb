"""What calibration saw, used again: what it depends on, and putting it back into a prepared graph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e import FakeQuantizeBase

from edgekd import _group
from edgekd.calibration._fake_quantize import ActivationQuantizer, quantizers
from edgekd.calibration._histogram import Histogram

__all__ = ["Memory", "graph_hash", "observed", "recalled"]


class Memory(Protocol):
    """Keeps histograms from one calibration to the next."""

    def recall(self, graph: str) -> Mapping[str, Histogram] | None:
        """The histograms of a graph with this hash, seen on the same samples; None if there are none."""
        ...

    def keep(self, graph: str, histograms: Mapping[str, Histogram]) -> None:
        """Remember them."""
        ...


def observed(graph: GraphModule) -> dict[str, Histogram]:
    """What the activation quantizers of a graph have seen, by their names."""
    return {name: one.histogram for name, one in quantizers(graph) if isinstance(one, ActivationQuantizer)}


def recalled(graph: GraphModule, memory: Memory | None) -> int:
    """Put back what was seen of this very graph; gives the number of samples, 0 if nothing is known.

    Args:
        graph: prepared; its activation quantizers have forgotten what they saw.
        memory: what is known; None knows nothing. Of several processes, what the main one knows counts for all.
    """
    found = _group.from_main(lambda: memory.recall(graph_hash(graph))) if memory is not None else None
    if found is None:
        return 0
    for name, one in quantizers(graph):
        if isinstance(one, ActivationQuantizer):
            one.histogram.merge(found[name])
    # a quantizer that stands at two places has seen every sample twice
    return min((histogram.samples for histogram in found.values()), default=0)


def graph_hash(graph: GraphModule) -> str:
    """SHA-256 of all that the histograms depend on but the samples: operators, float tensors, and where is observed."""
    digest = hashlib.sha256()
    # one quantizer may stand at several places, under several names
    every = graph.named_modules(remove_duplicate=False)
    inside = tuple(f"{name}." for name, module in every if isinstance(module, FakeQuantizeBase))
    for node in graph.graph.nodes:
        digest.update(f"{node.name} {node.op} {node.target} {node.args}\n".encode())
    for name, tensor in sorted(graph.state_dict().items()):
        if not name.startswith(inside):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
