"""Which operators of an ONNX file TensorRT can run as int8, read from the network its parser made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from edgekd.spec import TensorSpec
from edgekd.targets._base import Audit, Island
from edgekd.targets._graphview import GraphView
from edgekd.targets._modelfile import read_model
from edgekd.targets._trt_network import Layer, ParsedNetwork, parse
from edgekd.targets._trt_rules import refusals

__all__ = ["audit_by_rules", "audit_network", "axes_in_the_way", "trt_audit"]

_WEIGHTED = {"CONVOLUTION": "Conv", "DECONVOLUTION": "ConvTranspose", "MATRIX_MULTIPLY": "MatMul"}
_ONNX_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# layers that move values without changing them: TensorRT carries a DQ across them
_MOVING = frozenset({"IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE"})
# constants, shape arithmetic and what is fused into its neighbour: none is a float kernel of its own
_NO_KERNEL = _MOVING | {"ACTIVATION", "CAST", "CONSTANT", "DEQUANTIZE", "QUANTIZE", "SHAPE"}
_REMEDY = "Quantize for the target tensorrt."
_ONNX_MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Identity", "Cast"})


def trt_audit(path: Path) -> Audit:
    """Audit an ONNX file for TensorRT.

    A file with a node that TensorRT refuses cannot run at all: its audit has int8 = 0 and an island for each refusal.

    Raises:
        BackendMissing: no TensorRT.
        ModelFileError: the file is corrupt or reaches outside its folder.
        GateFailed: the parser refuses the graph for a reason that is not one of quantization.
    """
    model = read_model(path)
    refused = refusals(model)
    if not refused:
        return audit_network(parse(path))
    operators = Counter(node.op_type for node in model.graph.node)
    quantizable = sum(operators[op] for op in _ONNX_WEIGHTED)
    islands = _merged(refused)
    return Audit(
        target="tensorrt",
        quantizable=max(quantizable, len(islands)),
        int8=0,
        islands=islands,
        legitimate={},
        operators=dict(operators),
    )


def audit_by_rules(model: onnx.ModelProto) -> Audit:
    """What the file itself tells, for one that TensorRT's parser does not read: are products fed by Q/DQ?"""
    islands = list(_merged(refusals(model)))
    named = {island.name for island in islands}
    quantizable = 0
    for view in GraphView.all_of(model):
        for node in view.nodes:
            if node.op_type not in _ONNX_WEIGHTED or view.is_foldable(node):
                continue
            quantizable += 1
            name = node.name or node.output[0]
            cause = _onnx_cause(view, node)
            if cause and name not in named:
                islands.append(Island(name=name, op=node.op_type, cause=cause, remedy=_REMEDY))
    operators = Counter(node.op_type for node in model.graph.node)
    quantizable = max(quantizable, len(islands))
    return Audit("tensorrt", quantizable, quantizable - len(islands), tuple(islands), {}, dict(operators))


def axes_in_the_way(inputs: Sequence[TensorSpec]) -> tuple[list[str], list[str]]:
    """Dynamic axes of a model's inputs: why an engine cannot be built, and what a build needs to be told."""
    refused, notes = [], []
    for spec in inputs:
        beyond = [str(size) for size in spec.shape[1:] if isinstance(size, str)]
        if beyond:
            refused.append(
                f"Input '{spec.name}' {spec.shape} is dynamic in {', '.join(beyond)}: engines are built for a range of"
                " batch sizes only. Export it with fixed sizes behind the batch."
            )
        elif spec.shape and isinstance(spec.shape[0], str):
            notes.append(
                f"Input '{spec.name}' has a dynamic batch: an engine is built for a range, export.tensorrt.batch, and"
                " refuses others."
            )
    return refused, notes


def audit_network(network: ParsedNetwork) -> Audit:
    """Audit a parsed network: every weighted layer and residual add must be fed by int8 Q/DQ.

    A weighted layer is int8 when a per-tensor pair stands on its data and a pair on its weights, per tensor or
    per output channel. An add of two activations is int8 when one of them, the skip, comes from a pair: the
    other is the convolution that the add is fused into.
    """
    makers = {name: layer for layer in network.layers for name in layer.outputs}
    islands: list[Island] = []
    quantizable = 0
    legitimate: Counter[str] = Counter()
    for layer in network.layers:
        if _is_weighted(layer, makers):
            cause = _weighted_cause(layer, makers)
        elif _is_residual(layer, makers):
            cause = _residual_cause(layer, makers)
        else:
            if _is_float_kernel(layer, makers):
                legitimate[layer.kind] += 1
            continue
        quantizable += 1
        if cause:
            op = _WEIGHTED.get(layer.kind, "Add")
            islands.append(Island(name=layer.name, op=op, cause=cause[0], remedy=cause[1]))
    return Audit(
        target="tensorrt",
        quantizable=quantizable,
        int8=quantizable - len(islands),
        islands=tuple(islands),
        legitimate=dict(legitimate),
        operators=network.counts,
    )


def _is_weighted(layer: Layer, makers: Mapping[str, Layer]) -> bool:
    if layer.kind == "MATRIX_MULTIPLY":
        # a product of two activations (attention) has no weights
        return any(_is_constant(name, makers) for name in layer.inputs)
    return layer.kind in _WEIGHTED


def _is_residual(layer: Layer, makers: Mapping[str, Layer]) -> bool:
    """An add of two feature maps, and not the bias of a matrix product or shape arithmetic."""
    return (
        layer.kind == "ELEMENTWISE"
        and layer.operation == "SUM"
        and layer.dtype.startswith(("float", "bfloat"))
        and not any(_is_constant(name, makers) for name in layer.inputs)
    )


def _is_float_kernel(layer: Layer, makers: Mapping[str, Layer]) -> bool:
    """Whether a layer computes on float activations by itself; a bias or a scaling by a constant is fused."""
    if layer.kind in _NO_KERNEL or not layer.dtype.startswith(("float", "bfloat")):
        return False
    return layer.kind != "ELEMENTWISE" or not any(_is_constant(name, makers) for name in layer.inputs)


def _is_constant(name: str, makers: Mapping[str, Layer]) -> bool:
    layer = makers.get(name)
    while layer is not None and layer.kind != "CONSTANT":
        if layer.kind not in _MOVING | {"QUANTIZE", "DEQUANTIZE", "CAST"}:
            return False
        layer = makers.get(layer.inputs[0])
    return layer is not None


def _pair(name: str, makers: Mapping[str, Layer]) -> Layer | None:
    """The DEQUANTIZE that a tensor comes from, across layers that only move values.

    A concatenation counts when all its inputs come from one; the first is given.
    """
    layer = makers.get(name)
    while layer is not None and (layer.kind in _MOVING or (layer.kind == "POOLING" and layer.operation == "MAX")):
        layer = makers.get(layer.inputs[0])
    if layer is not None and layer.kind == "CONCATENATION":
        pairs = [_pair(part, makers) for part in layer.inputs]
        return pairs[0] if all(pairs) else None
    return layer if layer is not None and layer.kind == "DEQUANTIZE" else None


def _weighted_cause(layer: Layer, makers: Mapping[str, Layer]) -> tuple[str, str] | None:
    weight = _weight_position(layer, makers)
    if len(layer.inputs) < 2:
        return "its weights are a float constant without a DequantizeLinear", _REMEDY
    data_name, weight_name = layer.inputs[1 - weight], layer.inputs[weight]
    data, weights = _pair(data_name, makers), _pair(weight_name, makers)
    if data is None:
        return f"its data input '{data_name}' {_without_pair(data_name, makers)}", _REMEDY
    if _is_constant(data_name, makers):
        return f"its data input '{data_name}' is a constant", "Fold the constant before export."
    if data.scale_size > 1:
        return f"its data has {data.scale_size} scales ('{data.name}'); TensorRT takes one", _REMEDY
    if weights is None:
        return f"its weight input '{weight_name}' {_without_pair(weight_name, makers)}", _REMEDY
    axis = _output_channel_axis(layer, weight)
    if weights.scale_size > 1 and axis is not None and weights.axis != axis:
        return (
            f"its weights have scales along axis {weights.axis} ('{weights.name}'), not along output channels ({axis})",
            _REMEDY,
        )
    return None


def _weight_position(layer: Layer, makers: Mapping[str, Layer]) -> int:
    first_is_weight = layer.kind == "MATRIX_MULTIPLY" and not _is_constant(layer.inputs[1], makers)
    return 0 if first_is_weight else 1


def _output_channel_axis(layer: Layer, weight: int) -> int | None:
    """Axis of the output channels in the weights; None for a matrix whose rank the layer does not tell."""
    if layer.kind != "MATRIX_MULTIPLY":
        return 0 if layer.kind == "CONVOLUTION" else 1
    # of a matrix: columns of the second operand, rows of the first, and the other way round when transposed
    return int((weight == 1) != layer.transposed[weight])


def _without_pair(name: str, makers: Mapping[str, Layer]) -> str:
    maker = makers.get(name)
    if maker is None:
        return "is an input of the model without a Q/DQ pair"
    if maker.kind == "CAST":
        return f"comes through a cast ('{maker.name}') that stands between the DequantizeLinear and the operator"
    return f"comes from {maker.kind} '{maker.name}' without a Q/DQ pair"


def _residual_cause(layer: Layer, makers: Mapping[str, Layer]) -> tuple[str, str] | None:
    if any(_pair(name, makers) for name in layer.inputs):
        return None
    return (
        "neither of its inputs comes from a Q/DQ pair, so the convolution before it must write float",
        "Put a Q/DQ pair on the skip input: quantize for the target tensorrt.",
    )


def _onnx_cause(view: GraphView, node: onnx.NodeProto) -> str | None:
    """Why a product of the file is float: an input without a pair."""
    constant = [view.is_constant(name) for name in node.input[:2]]
    if node.op_type == "MatMul" and not any(constant):
        return None  # a product of two activations has no weights
    for name, what in zip(node.input[:2], ("data", "weight"), strict=False):
        made = view.producer(name)
        while made is not None and made.op_type in _ONNX_MOVES:
            made = view.producer(made.input[0])
        if made is None or made.op_type != "DequantizeLinear":
            source = f"comes from {made.op_type} '{made.name or made.output[0]}'" if made is not None else "is there"
            return f"its {what} input '{name}' {source} without a Q/DQ pair"
    return None


def _merged(refused: Sequence[Island]) -> tuple[Island, ...]:
    """One island an operator, with all that TensorRT refuses about it."""
    groups: dict[tuple[str, str], list[Island]] = {}
    for island in refused:
        groups.setdefault((island.name, island.op), []).append(island)
    return tuple(
        Island(
            name=name,
            op=op,
            cause="; ".join(one.cause for one in found),
            remedy=" ".join(dict.fromkeys(one.remedy for one in found)),
        )
        for (name, op), found in groups.items()
    )
