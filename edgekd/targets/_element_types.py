"""Element types of the tensors of a graph, followed node by node.

ONNX's own inference stops at the first operator that it does not know, and ONNX Runtime writes no types into an
optimized graph; its operator schemas say which output has the type of which input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import onnx
import onnxruntime

__all__ = ["FLOAT_TYPES", "element_types"]

FLOAT_TYPES = frozenset({"float32", "float16", "float64", "bfloat16"})

_TENSOR = re.compile(r"^tensor\((\w+)\)$")
_USUAL_NAMES = {"float": "float32", "double": "float64"}
_WITHOUT_ZERO_POINT = "uint8"


@dataclass(frozen=True)
class _Schema:
    """The type of each input and output: "tensor(int64)", or the name of a variable, "T"."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def element_types(graph: onnx.GraphProto, outer: Mapping[str, str] | None = None) -> dict[str, str]:
    """Element type by tensor, "" where nothing tells; tensors of bodies inside are in it too.

    Args:
        graph: whose nodes come in topological order.
        outer: types of the tensors that a body may read from around it.
    """
    types = dict(outer or {})
    for value in (*graph.value_info, *graph.output, *graph.input):
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
            types[value.name] = _name(value.type.tensor_type.elem_type)
    types |= {tensor.name: _name(tensor.data_type) for tensor in graph.initializer}
    for node in graph.node:
        found = _result_types(node, types)
        types |= {name: kind for name, kind in zip(node.output, found, strict=True) if name and kind}
    return types


def _result_types(node: onnx.NodeProto, types: dict[str, str]) -> list[str]:
    """Type of each output of a node; `types` learns what its bodies hold."""
    bodies = [one.g for one in node.attribute if one.type == onnx.AttributeProto.GRAPH]
    if bodies:
        for body in bodies:
            types.update(element_types(body, types))
        # the results of an If and the last ones of a Loop or Scan are those of the body
        inner = [types.get(value.name, "") for value in bodies[0].output][-len(node.output) :]
        return [*inner, *[""] * (len(node.output) - len(inner))]
    kinds = [types.get(name, "") for name in node.input]
    if node.op_type == "DynamicQuantizeLinear":
        return ["uint8", "float32", "uint8"][: len(node.output)]
    special = _special(node, kinds)
    if special is not None:
        return [special] + [""] * (len(node.output) - 1)
    schema = _schema(node.domain, node.op_type)
    if schema is None:
        return [""] * len(node.output)
    return [_resolved(_at(schema.outputs, index), schema, kinds) for index in range(len(node.output))]


def _special(node: onnx.NodeProto, kinds: Sequence[str]) -> str | None:
    """Operators whose result type is in an attribute, or in a parameter that may be missing."""
    chosen = {one.name: one for one in node.attribute}
    if node.op_type == "QGemm":  # float without the zero-point of its output
        return kinds[8] if len(kinds) > 8 and kinds[8] else "float32"
    if node.op_type == "QuantizeLinear" and len(kinds) < 3:
        return _name(chosen["output_dtype"].i) if "output_dtype" in chosen else _WITHOUT_ZERO_POINT
    if node.op_type == "DequantizeLinear":
        return kinds[1]
    if node.op_type == "Constant":
        if "value" in chosen:
            return _name(chosen["value"].t.data_type)
        return "int64" if any(name.startswith("value_int") for name in chosen) else "float32"
    if node.op_type == "ConstantOfShape":
        return _name(chosen["value"].t.data_type) if "value" in chosen else "float32"
    for name in ("to", "dtype"):
        if name in chosen and chosen[name].i:
            return _name(chosen[name].i)
    return None


def _resolved(kind: str, schema: _Schema, kinds: Sequence[str]) -> str:
    if fixed := _TENSOR.match(kind):
        return _USUAL_NAMES.get(fixed[1], fixed[1])
    same = (one for index, one in enumerate(kinds) if one and _at(schema.inputs, index) == kind)
    return next(same, "")


def _at(kinds: Sequence[str], index: int) -> str:
    """The last parameter of a schema may stand for several values."""
    return kinds[min(index, len(kinds) - 1)] if kinds else ""


def _schema(domain: str, op_type: str) -> _Schema | None:
    domain = "" if domain == "ai.onnx" else domain
    known = _schemas()
    # the runtime's inner domains (another layout of the same operators) do not all have schemas
    return known.get((domain, op_type)) or (known.get(("", op_type)) if domain.startswith("com.ms.") else None)


@cache
def _schemas() -> Mapping[tuple[str, str], _Schema]:
    """The newest schema of every operator that the runtime knows, or else of those in the ONNX standard."""
    ask = getattr(onnxruntime.capi.onnxruntime_pybind11_state, "get_all_operator_schema", None)
    found: dict[tuple[str, str], tuple[int, _Schema]] = {}
    for schema in ask() if ask is not None else ():
        key = (schema.domain, schema.name)
        if key not in found or found[key][0] < schema.since_version:
            inputs, outputs = (tuple(str(one.typeStr) for one in side) for side in (schema.inputs, schema.outputs))
            found[key] = (int(schema.since_version), _Schema(inputs, outputs))
    for standard in onnx.defs.get_all_schemas():
        if (standard.domain, standard.name) not in found:
            inputs, outputs = (tuple(one.type_str for one in side) for side in (standard.inputs, standard.outputs))
            found[standard.domain, standard.name] = (0, _Schema(inputs, outputs))
    return {key: schema for key, (_, schema) in found.items()}


def _name(kind: int) -> str:
    name = onnx.TensorProto.DataType.Name(kind).lower() if kind in _KNOWN else ""
    return _USUAL_NAMES.get(name, name)


_KNOWN = frozenset(onnx.TensorProto.DataType.values())
