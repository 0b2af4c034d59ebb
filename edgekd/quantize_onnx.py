"""Post-training quantization of a user's ONNX file, for which there is no torch source.

The float graph is simplified by ONNX Runtime, read by the target's rules, run there over calibration batches with the
tensors that matter as extra outputs, and rewritten with Q/DQ pairs. One batch's tensors are held at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, version_converter

from edgekd.calibration._base import Calibrator
from edgekd.calibration._histogram import Histogram
from edgekd.errors import DataError, MismatchError, ModelFileError
from edgekd.targets._base import Target
from edgekd.targets._graph import Graph, fold_pads, remove_dead, remove_identities, restore_global_pool
from edgekd.targets._graphview import GraphView
from edgekd.targets._onnxruntime import OnnxRuntimeRunner, simplified
from edgekd.targets._pairs import activation_grid, insert_pairs
from edgekd.targets._place import Placement

__all__ = ["QuantizedOnnx", "float_graph", "observe", "quantize_onnx"]

_LEAST_OPSET = 13  # Q and DQ have an axis since then
_UPGRADED_OPSET = 17
_HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class QuantizedOnnx:
    """A quantized model and what it was made from.

    Args:
        model: the Q/DQ model, finished for its target.
        simplified: the float model that was quantized, after simplification.
        ranges: (minimum, maximum) of every observed tensor.
        samples: how many were seen in calibration.
        calibration_s: seconds of running and observing.
        float_groups: operators that the target could run as int8 and that stay float by choice.
        histograms: what was seen, by tensor.
    """

    model: onnx.ModelProto
    simplified: onnx.ModelProto
    ranges: Mapping[str, tuple[float, float]]
    samples: int
    calibration_s: float
    float_groups: Sequence[str]
    histograms: Mapping[str, Histogram] = field(repr=False)


def quantize_onnx(
    model: onnx.ModelProto,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    target: Target,
    calibrator: Calibrator,
    reduce_range: bool,
    float_layers: Sequence[str] = (),
    threads: int = 1,
    where: str = "model",
) -> QuantizedOnnx:
    """Quantize a float model for a target.

    Args:
        model: float32, its tensors loaded; it is not changed.
        batches: feeds by input name, as the model takes them.
        target: its rules and graph passes.
        calibrator: chooses activation ranges.
        reduce_range: 7-bit weights.
        float_layers: names of nodes that stay float.
        threads: of the runtime in calibration.
        where: what messages call the model.

    Raises:
        MismatchError: the model is quantized already, computes in half precision, or the feeds do not fit it.
        ModelFileError: the runtime refuses the model, for example for an operator of a domain that it does not know.
        DataError: no batch, or a NaN or infinite value on the way.
        UsageError: a name in `float_layers` that no quantizable node has.
    """
    plain = float_graph(model, where=where)
    reference = onnx.ModelProto()
    reference.CopyFrom(plain)
    graph = Graph(plain)
    placement = Placement(graph, target.numerics, float_layers)
    started = time.perf_counter()
    histograms, samples = observe(reference, placement.observed(), batches, threads=threads)
    seconds = time.perf_counter() - started
    grid = activation_grid(target.numerics)
    ranges = {name: calibrator.range(histogram, grid) for name, histogram in histograms.items()}
    insert_pairs(graph, placement, ranges, numerics=target.numerics, reduce_range=reduce_range)
    finished = target.finish(plain, int8=True)
    finished.producer_name = "edgekd"
    onnx.checker.check_model(finished, full_check=True)
    return QuantizedOnnx(finished, reference, ranges, samples, seconds, tuple(float_layers), histograms)


def float_graph(model: onnx.ModelProto, *, where: str = "model") -> onnx.ModelProto:
    """A copy in the form that the rules are written for.

    Raises:
        MismatchError: quantized already, or in half precision.
        ModelFileError: the runtime refuses it.
    """
    _refuse_quantized(model, where)
    copy = _upgraded(model, where)
    plain = simplified(copy, where)
    graph = Graph(plain)
    remove_identities(graph)
    restore_global_pool(graph)
    fold_pads(graph)
    remove_dead(graph)
    return plain


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[Mapping[str, np.ndarray]], *, threads: int = 1
) -> tuple[dict[str, Histogram], int]:
    """Run a float model and count the values of some of its tensors.

    Args:
        model: float, in memory.
        tensors: computed tensors and inputs.
        batches: feeds; samples along axis 0.
        threads: of the runtime.

    Returns:
        (a histogram for each tensor, number of samples).

    Raises:
        DataError: no batch, or a value that is not finite; names the tensor.
        MismatchError: a batch does not fit the model's inputs.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    for name in tensors:
        if name not in inputs | outputs:
            watched.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    found = {name: Histogram() for name in tensors}
    samples = 0
    with OnnxRuntimeRunner(watched.SerializeToString(), threads=threads, checked=False) as runner:
        for feeds in batches:
            values = {**feeds, **runner.run(feeds)}
            for name, histogram in found.items():
                _count(histogram, values.pop(name), name)
            samples += len(next(iter(feeds.values())))
    if samples == 0:
        raise DataError("Calibration saw no data. Give at least one sample.")
    return found, samples


def _count(histogram: Histogram, values: np.ndarray, name: str) -> None:
    try:
        histogram.update(torch.from_numpy(np.asarray(values)))
    except DataError as error:
        raise DataError(f"Tensor '{name}': {error}") from error


def _refuse_quantized(model: onnx.ModelProto, where: str) -> None:
    if GraphView(model).has_quantizers:
        raise MismatchError(
            f"{where}: is quantized already. `edgekd audit {where}` says how much of it runs as int8; to quantize it"
            " anew, start from the float model."
        )
    half = [tensor.name for tensor in model.graph.initializer if tensor.data_type in _HALF_TYPES]
    if half:
        raise MismatchError(
            f"{where}: computes in half precision ('{half[0]}' and {len(half) - 1} more tensors). Export it in float32."
        )


def _upgraded(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """A copy at an operator set in which Q and DQ have an axis."""
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if opset >= _LEAST_OPSET:
        return copy
    try:
        converted: onnx.ModelProto = version_converter.convert_version(copy, _UPGRADED_OPSET)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelFileError(
            f"{where}: operator set {opset} is too old for int8 per channel, and cannot be raised: {reason}."
            f" Export it with operator set {_UPGRADED_OPSET} or newer."
        ) from error
    return converted
