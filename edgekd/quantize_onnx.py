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
from onnx import TensorProto, version_converter

from edgekd._observing import Observed, observe
from edgekd.calibration._base import Calibrator
from edgekd.errors import MismatchError, ModelFileError
from edgekd.targets._base import Target
from edgekd.targets._bias import correct_biases, mean_inputs
from edgekd.targets._graph import Graph
from edgekd.targets._graph_passes import fold_pads, remove_dead, remove_identities, restore_global_pool
from edgekd.targets._graphview import GraphView
from edgekd.targets._onnxruntime import simplified
from edgekd.targets._pairs import activation_grid, insert_pairs
from edgekd.targets._place import Placement

__all__ = ["Observed", "QuantizedOnnx", "float_graph", "quantize_onnx"]

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
        calibration_s: seconds of running and observing; 0 if nothing had to be run.
        float_groups: operators that the target could run as int8 and that stay float by choice.
        corrected_biases: of how many operators.
        observed: what was seen in calibration.
    """

    model: onnx.ModelProto
    simplified: onnx.ModelProto
    ranges: Mapping[str, tuple[float, float]]
    calibration_s: float
    float_groups: Sequence[str]
    corrected_biases: int
    observed: Observed = field(repr=False)


def quantize_onnx(
    model: onnx.ModelProto,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    target: Target,
    calibrator: Calibrator,
    reduce_range: bool,
    float_layers: Sequence[str] = (),
    bias_correction: bool = True,
    observed: Observed | None = None,
    threads: int = 1,
    where: str = "model",
) -> QuantizedOnnx:
    """Quantize a float model for a target.

    Args:
        model: float32, its tensors loaded; it is not changed.
        batches: feeds by input name, as the model takes them.
        target: its rules and graph passes.
        calibrator: chooses activation ranges.
        reduce_range: neighbouring weights share their 8 bits, so that 16 bits hold the sum of their products.
        float_layers: names of nodes that stay float.
        bias_correction: give back what rounding the weights takes from the mean of each channel.
        observed: what an earlier calibration of the same model saw; `batches` are left alone then.
        threads: of the runtime in calibration.
        where: what messages call the model.

    Raises:
        MismatchError: the model is quantized already, computes in half precision, or the feeds or `observed` do not
            fit it.
        ModelFileError: the runtime refuses the model, for example for an operator of a domain that it does not know.
        DataError: no batch, or a NaN or infinite value on the way.
        UsageError: a name in `float_layers` that no quantizable node has.
    """
    plain = float_graph(model, where=where)
    reference = onnx.ModelProto()
    reference.CopyFrom(plain)
    graph = Graph(plain)
    placement = Placement(graph, target.numerics, float_layers)
    tensors, means, seconds = placement.observed(), mean_inputs(graph, placement), 0.0
    if observed is None:
        started = time.perf_counter()
        observed = observe(reference, tensors, batches, means=means, threads=threads)
        seconds = time.perf_counter() - started
    observed.check(tensors, means if bias_correction else ())
    corrected = 0
    if bias_correction:
        values = {name: observed.means[name].value for name in means}
        corrected = correct_biases(graph, placement, values, numerics=target.numerics, reduce_range=reduce_range)
    grid = activation_grid(target.numerics)
    ranges = {name: calibrator.range(observed.histograms[name], grid) for name in tensors}
    insert_pairs(graph, placement, ranges, numerics=target.numerics, reduce_range=reduce_range)
    finished = target.finish(plain, int8=True)
    finished.producer_name = "edgekd"
    onnx.checker.check_model(finished, full_check=True)
    return QuantizedOnnx(finished, reference, ranges, seconds, tuple(float_layers), corrected, observed)


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
