"""Cast the float rest of a graph to float16, the way strongly typed TensorRT wants to read it.

A strongly typed builder takes every precision from the file, so "the rest in float16" has to be written into the
graph. Inputs and outputs of the model stay float32. Scales of Q/DQ pairs become float16 values, because a
convolution must be fed by its DequantizeLinear directly: a Cast between the two is not fused by every TensorRT.
Opset 19 is the first in which QuantizeLinear and DequantizeLinear take float16 scales.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from edgekd.errors import ModelFileError

__all__ = ["WEIGHTED", "to_float16"]

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators with weights: the ones that TensorRT runs as int8 when a Q/DQ pair stands on each input."""

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
# sums of squares and exponentials leave float16's range (65504) on ordinary activations
_SENSITIVE = frozenset(
    {
        "Exp",
        "InstanceNormalization",
        "LayerNormalization",
        "Log",
        "LogSoftmax",
        "Pow",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceSumSquare",
        "Softmax",
    }
)
_MIN_OPSET, _MIN_IR = 19, 9
# half of float16's 11-bit significand step is 2^-11; anything worse means the value fell among the subnormals
_SCALE_ERROR = 2.0**-10


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cast the float32 part of a graph to float16 and keep its inputs and outputs float32.

    Every scale is rounded to float16 on both sides of its pair, so a Q and its DQ still agree exactly; that moves
    the grid by at most 2^-11 of itself. An operator stays float32, with casts around it, when float16 cannot hold its
    scales (below about 6e-5, where precision is lost) or constants (above 65504), or when it sums squares or
    exponentials.

    Args:
        model: a float or Q/DQ graph with standard operators; not changed.

    Returns:
        the cast graph, opset 19 at least, with the metadata of the original.

    Raises:
        ModelFileError: the graph has control flow, or cannot be brought to opset 19.
    """
    model = _with_opset(model)
    for node in model.graph.node:
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute
        ):
            raise ModelFileError(
                f"node '{node.name}' ({node.op_type}) carries a subgraph; only graphs without control flow can be"
                " cast to float16. Build the float32 file instead."
            )
    result = _Caster(model).cast()
    onnx.checker.check_model(result, full_check=True)
    return result


def _with_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy at opset 19 or newer, with float Constant nodes made initializers."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if opset < _MIN_OPSET - 1:
        try:
            copy = version_converter.convert_version(copy, _MIN_OPSET)
        except (RuntimeError, onnx.checker.ValidationError) as error:
            raise ModelFileError(
                f"the graph has opset {opset} and cannot be converted to opset {_MIN_OPSET}, the first with"
                f" float16 scales: {error}. Export it with opset 18 or newer."
            ) from error
    for entry in copy.opset_import:
        # 18 to 19 only adds types and optional attributes, so the number can be raised without touching a node
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, _MIN_OPSET)
    copy.ir_version = max(copy.ir_version, _MIN_IR)
    _constants_to_initializers(copy.graph)
    return copy


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if node.op_type == "Constant" and value is not None and value.data_type == TensorProto.FLOAT:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _fits(values: np.ndarray, *, scale: bool) -> bool:
    """Whether float16 holds the values: in range, and where each one counts, to within a rounding step.

    Each one counts among scales, and in a constant of one element (an epsilon, a factor).
    """
    with np.errstate(over="ignore"):  # an overflow is one of the answers
        half = values.astype(np.float16).astype(np.float32)
    if np.isinf(half[np.isfinite(values)]).any():
        return False
    return not (scale or values.size == 1) or bool((np.abs(half - values) <= _SCALE_ERROR * np.abs(values)).all())


class _Caster:
    """One pass over a graph that writes each node once, in the precision it can have.

    Every float tensor has a float32 name, a float16 name, or both once a Cast was needed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.types = _element_types(model)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.half: dict[str, str] = {}
        self.full: dict[str, str] = {
            name: name for name in [*self.constants, *(v.name for v in graph.input)] if self._is_float(name)
        }
        self.nodes: list[onnx.NodeProto] = []
        self.float32_nodes = {id(node) for node in self._stay_float32()}
        self.taken = {name for node in graph.node for name in (*node.input, *node.output)} | set(self.constants)

    def cast(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            half = id(node) not in self.float32_nodes and self._can_be_half(node)
            self._emit(node, half=half)
        graph = self.model.graph
        used = {name for node in self.nodes for name in node.input} | self.outputs
        initializers = [tensor for name, tensor in self.constants.items() if name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(initializers)
        return self.model

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) == TensorProto.FLOAT

    def _stay_float32(self) -> list[onnx.NodeProto]:
        """Nodes that float16 cannot serve, closed over the pairs and weighted operators they belong to."""
        nodes = list(self.model.graph.node)
        consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                consumers.setdefault(name, []).append(node)
        found = [node for node in nodes if node.op_type in _SENSITIVE or not self._constants_fit(node)]
        seen = {id(node) for node in found}
        for node in found:  # grows while it is walked
            for other in self._tied(node, consumers):
                if id(other) not in seen:
                    seen.add(id(other))
                    found.append(other)
        return found

    def _tied(self, node: onnx.NodeProto, consumers: dict[str, list[onnx.NodeProto]]) -> Iterator[onnx.NodeProto]:
        """A pair shares its scale, and a weighted operator and its DQs share their type (no Cast between them)."""
        before = [self.producer[name] for name in node.input if name in self.producer]
        after = [other for name in node.output for other in consumers.get(name, [])]
        if node.op_type in WEIGHTED:
            yield from (other for other in before if other.op_type == "DequantizeLinear")
        if node.op_type == "QuantizeLinear":
            yield from (other for other in after if other.op_type == "DequantizeLinear")
        if node.op_type == "DequantizeLinear":
            yield from (other for other in before if other.op_type == "QuantizeLinear")
            yield from (other for other in after if other.op_type in WEIGHTED)

    def _constants_fit(self, node: onnx.NodeProto) -> bool:
        for position, name in enumerate(node.input):
            if name not in self.constants or not self._is_float(name):
                continue
            scale = node.op_type in _QDQ and position == 1
            if not _fits(numpy_helper.to_array(self.constants[name]), scale=scale):
                return False
        return True

    def _can_be_half(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "QuantizeLinear":
            # at the model's own input the pair itself is the boundary: no Cast before it
            return node.input[0] in self.half
        if node.op_type == "DequantizeLinear":
            return self._is_float(node.output[0])
        if node.domain not in ("", "ai.onnx") or node.op_type == "Cast":
            return False
        slots = self._half_slots(node)
        floats = [name for name in node.output if self._is_float(name)]
        return bool(floats) and any(slots[i] and self._is_float(name) for i, name in enumerate(node.input))

    def _half_slots(self, node: onnx.NodeProto) -> list[bool]:
        """For each input, whether it shares the type variable of the first output and that admits float16."""
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        variable = schema.outputs[0].type_str
        allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
        admits = "tensor(float16)" in allowed.get(variable, set())
        last = len(schema.inputs) - 1  # a variadic operator repeats its last formal input
        strings = [schema.inputs[min(i, last)].type_str for i in range(len(node.input))]
        return [admits and "tensor(float16)" in allowed.get(s, set()) for s in strings]

    def _emit(self, node: onnx.NodeProto, *, half: bool) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        slots = [half] * len(node.input) if node.op_type in _QDQ else (self._half_slots(node) if half else [])
        for i, name in enumerate(node.input):
            if self._is_float(name):
                new.input[i] = self._as_half(name) if half and slots[i] else self._as_full(name)
        if node.op_type == "QuantizeLinear" and not half and id(node) not in self.float32_nodes:
            new.input[1] = self._rounded(node.input[1])
        self.nodes.append(new)
        for i, name in enumerate(node.output):
            if not self._is_float(name):
                continue
            if not half:
                self.full[name] = name
            elif name in self.outputs:
                new.output[i] = self.half[name] = self._fresh(f"{name}_float16")
                self._cast(self.half[name], name, TensorProto.FLOAT)
                self.full[name] = name
            else:
                self.half[name] = name

    def _as_half(self, name: str) -> str:
        if name not in self.half:
            self.half[name] = self._fresh(f"{name}_float16")
            if name in self.constants:
                values = numpy_helper.to_array(self.constants[name]).astype(np.float16)
                self.constants[self.half[name]] = numpy_helper.from_array(values, self.half[name])
            else:
                self._cast(name, self.half[name], TensorProto.FLOAT16)
        return self.half[name]

    def _as_full(self, name: str) -> str:
        if name not in self.full:
            self.full[name] = self._fresh(f"{name}_float32")
            self._cast(self.half[name], self.full[name], TensorProto.FLOAT)
        return self.full[name]

    def _rounded(self, name: str) -> str:
        """A float32 copy of a scale that holds exactly the value its DQ has in float16."""
        if name not in self.constants or not self._is_float(name):
            return name
        rounded = self._fresh(f"{name}_rounded")
        values = numpy_helper.to_array(self.constants[name]).astype(np.float16).astype(np.float32)
        self.constants[rounded] = numpy_helper.from_array(values, rounded)
        return rounded

    def _cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to))

    def _fresh(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types
