"""Biases of a float ONNX graph corrected by what rounding the weights will take from each channel's mean.

The mean of a weighted operator's output moves by the rounding error of its weights times its mean input, padding
included, which is known from calibration: both are linear, so the mean of the products is the product with the mean.

Reference: Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", 2019, arXiv:1906.04721, section 4.2 and appendix D (empirical).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, numpy_helper

from edgekd.targets._base import Numerics
from edgekd.targets._graph import Graph
from edgekd.targets._pairs import weight_codes
from edgekd.targets._place import Placement
from edgekd.targets._windows import Window

__all__ = ["correct_biases", "mean_inputs"]


def mean_inputs(graph: Graph, placement: Placement) -> dict[str, Window]:
    """What must be averaged to correct biases: first output of each quantized weighted operator -> what it reads."""
    found: dict[str, Window] = {}
    for (name, _), readers in placement.weights().items():
        kernel = tuple(graph.constants[name].dims[2:])
        found |= {node.output[0]: Window.of(node, kernel) for node in readers}
    return found


def correct_biases(
    graph: Graph, placement: Placement, means: Mapping[str, np.ndarray], *, numerics: Numerics, reduce_range: bool
) -> int:
    """Add to each bias what rounding the weights takes away, in place, before Q/DQ pairs are inserted.

    Args:
        graph: float.
        placement: made for it.
        means: of `mean_inputs`, shape (C, kernel...) or (C,); operators that are not there are left alone.
        numerics: the target's.
        reduce_range: see `insert_pairs`.

    Returns:
        How many operators were corrected. One whose bias is not its own constant is left as it is.
    """
    corrected = 0
    for (name, axis), readers in placement.weights().items():
        weight = graph.value(name)
        if weight is None:
            raise RuntimeError(f"weight '{name}' is no constant")
        codes, scale = weight_codes(weight, axis, readers, numerics=numerics, reduce_range=reduce_range)
        shape = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]
        lost = np.moveaxis(weight - codes.astype(np.float32) * scale.reshape(shape), axis, 0)
        for node in readers:
            mean = means.get(node.output[0])
            if mean is not None:
                corrected += _add(graph, node, _missing(node, lost, mean).astype(np.float32))
    return corrected


def _missing(node: NodeProto, lost: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What the mean of each output channel loses, given what each weight does, output channels first."""
    groups = next((one.i for one in node.attribute if one.name == "group"), 1) if node.op_type == "Conv" else 1
    parts = zip(np.split(lost.astype(np.float64), groups), np.split(mean, groups), strict=True)
    return np.concatenate([rows.reshape(len(rows), -1) @ part.ravel() for rows, part in parts])


def _add(graph: Graph, node: NodeProto, change: np.ndarray) -> bool:
    """Add to the bias of an operator, which may be an addition behind a product; False if there is none to change."""
    if node.op_type == "MatMul":
        readers = graph.readers(node.output[0])
        alone = len(readers) == 1 and readers[0].op_type == "Add" and node.output[0] not in graph.outputs
        names = [name for name in readers[0].input if name != node.output[0]] if alone else []
        return bool(names) and _add_to_constant(graph, names[0], change, shared=False) is not None
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        added = graph.add_constant(f"{node.output[0]}_bias", change)
        del node.input[2:]
        node.input.append(added)
        return True
    changed = _add_to_constant(graph, name, change, shared=True)
    if changed is not None:
        node.input[2] = changed
    return changed is not None


def _add_to_constant(graph: Graph, name: str, change: np.ndarray, *, shared: bool) -> str | None:
    """The changed constant's name; a copy's, if others read it and `shared` allows one; None if that cannot be."""
    value = graph.value(name)
    if value is None or value.size != change.size or value.shape[-1:] != change.shape:
        return None
    added = (value + change).astype(value.dtype)
    if len(graph.readers(name)) == 1:
        graph.constants[name].CopyFrom(numpy_helper.from_array(added, name))
        return name
    return graph.add_constant(f"{name}_corrected", added) if shared else None
