"""The form of a graph that processors' runtimes are given, whatever their grids."""

from __future__ import annotations

import onnx

from edgekd.targets._graph import Graph
from edgekd.targets._graph_passes import (
    absorb_clamps,
    fold_pads,
    quantize_bias,
    remove_dead,
    remove_identities,
    restore_global_pool,
)
from edgekd.targets._sharing import share_constants

__all__ = ["finished"]


def finished(model: onnx.ModelProto, *, int8: bool) -> onnx.ModelProto:
    """The exporter's detours undone, and for int8 the bias as int32 codes and the clamps in their ranges; in place."""
    graph = Graph(model)
    remove_identities(graph)
    restore_global_pool(graph)
    fold_pads(graph)
    if int8:
        absorb_clamps(graph)
        quantize_bias(graph)
    remove_dead(graph)
    share_constants(graph)
    return model
