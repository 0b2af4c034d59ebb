"""Reading an ONNX file that somebody else wrote: nothing outside its folder is opened, every problem is named.

The ONNX library has had several path traversal faults in its external-data reader (CVE-2022-25882,
CVE-2024-27318, CVE-2026-27489), so containment is checked here before that reader sees a path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from edgekd.errors import ModelFileError
from edgekd.spec import TensorSpec
from edgekd.targets._external import check_external, is_external, location_of, stored_tensors

__all__ = [
    "UNKNOWN_RANK",
    "example_feeds",
    "file_size_bytes",
    "model_from_bytes",
    "model_inputs",
    "model_outputs",
    "read_model",
]

UNKNOWN_RANK = "..."
"""The single dimension of a `TensorSpec` whose number of dimensions the file does not tell."""

_PROTOBUF_LIMIT_BYTES = 2**31


def read_model(path: Path, *, external_data: bool = True) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Args:
        path: the file; tensors it keeps in other files must lie in its own folder, and be neither links nor missing.
        external_data: load those tensors into the result; without it they are checked but stay where they are.

    Raises:
        ModelFileError: missing, empty, truncated, not ONNX, invalid, or reaching outside its folder.
    """
    model = _parse(_bytes_of(path), str(path))
    folder = Path(os.path.realpath(path.parent))
    total = sum(check_external(tensor, folder, path) for tensor in stored_tensors(model.graph, model.functions))
    try:
        # by path, so that the checker resolves external data against the file's own folder and not the current one
        onnx.checker.check_model(str(folder / path.name))
    except (onnx.checker.ValidationError, DecodeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path}: not a valid ONNX model: {_first_line(error)}. Export it again.") from error
    if external_data and total:
        if model.ByteSize() + total >= _PROTOBUF_LIMIT_BYTES:
            raise ModelFileError(f"{path}: {total} bytes of external data; models of 2 GiB and more are not supported.")
        external_data_helper.load_external_data_for_model(model, str(folder))
    return model


def model_from_bytes(data: bytes, *, checked: bool = True) -> onnx.ModelProto:
    """Parse and check a model held in memory; it must keep its tensors inside.

    Args:
        data: the serialized model.
        checked: hold it against the standard, which asks among other things for the shape of every output.

    Raises:
        ModelFileError: truncated, not ONNX, invalid, or with external data.
    """
    model = _parse(data, "model in memory", shapes=checked)
    for tensor in stored_tensors(model.graph, model.functions):
        if is_external(tensor):
            raise ModelFileError(
                f"model in memory: tensor '{tensor.name}' is in an external file, which a model in memory cannot have."
                " Give the path of the file instead."
            )
    if not checked:
        return model
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"model in memory: not a valid ONNX model: {_first_line(error)}.") from error
    return model


def file_size_bytes(path: Path) -> int:
    """Size of an ONNX file together with the external files it needs, in bytes."""
    model = read_model(path, external_data=False)
    names = {location_of(tensor) for tensor in stored_tensors(model.graph, model.functions) if is_external(tensor)}
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in names)


def model_inputs(model: onnx.ModelProto) -> list[TensorSpec]:
    """What the model must be fed: its graph inputs without those that have a default value."""
    defaults = {tensor.name for tensor in model.graph.initializer}
    return [_spec(value) for value in model.graph.input if value.name not in defaults]


def model_outputs(model: onnx.ModelProto) -> list[TensorSpec]:
    """What the model gives."""
    return [_spec(value) for value in model.graph.output]


def example_feeds(
    specs: Sequence[TensorSpec], *, batch: int, seed: int, fixed: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Make arrays that a model with these inputs accepts.

    Floats are standard normal. 8-bit integers take their whole range, as pixels do; wider integers are 0 or 1,
    which is valid both as a mask and as an index into any table. A dynamic first dimension becomes `batch`.

    Args:
        specs: the inputs.
        batch: size of the dynamic first dimension, >= 1.
        seed: of the values.
        fixed: sizes of dynamic dimensions by name.

    Raises:
        ModelFileError: an input that cannot be made: a string, a sequence, an unknown element type or rank, or a
            second dynamic dimension without a value.
    """
    rng = np.random.default_rng(seed)
    sizes = dict(fixed or {})
    for spec in specs:
        if spec.shape and isinstance(spec.shape[0], str) and spec.shape != [UNKNOWN_RANK]:
            sizes.setdefault(spec.shape[0], batch)
    return {spec.name: _example(spec, _shape(spec, sizes), rng) for spec in specs}


def _bytes_of(path: Path) -> bytes:
    if path.is_dir():
        raise ModelFileError(f"{path}: is a folder, not an ONNX file. Give the .onnx file inside it.")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file. Check the path, or run `edgekd export` first.") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}.") from error
    if not data:
        raise ModelFileError(f"{path}: the file is empty. Export or copy it again.")
    return data


def _parse(data: bytes, where: str, *, shapes: bool = True) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelFileError(
            f"{where}: not an ONNX file, or truncated ({len(data)} bytes). Export or copy it again."
        ) from error
    # protobuf accepts many a text as a message of unknown fields only
    if not model.ir_version or not model.HasField("graph") or not model.opset_import:
        raise ModelFileError(f"{where}: not an ONNX file: it has no graph, IR version or operator set.")
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:  # the checker would refuse it too, without its name
            if shapes and value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
                raise ModelFileError(
                    f"{where}: {kind} '{value.name}' does not tell its number of dimensions. Export it with a shape;"
                    " only sizes may be dynamic."
                )
    return model


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value") or "untyped"
    if kind != "tensor_type":
        return TensorSpec(name=value.name, dtype=kind.removesuffix("_type"), shape=[UNKNOWN_RANK])
    tensor = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type in _DTYPES else "undefined"
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    if not tensor.HasField("shape"):
        return TensorSpec(name=value.name, dtype=dtype, shape=[UNKNOWN_RANK])
    shape: list[int | str] = []
    for axis, dim in enumerate(tensor.shape.dim):
        named = dim.dim_param or f"{value.name}.{axis}"
        # some exporters write a dynamic dimension as -1 or 0
        shape.append(dim.dim_value if dim.dim_value > 0 else named)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


_DTYPES = frozenset(onnx.TensorProto.DataType.values())
_WHOLE_RANGE = {"uint8": (0, 256), "int8": (-128, 128)}
_ZERO_OR_ONE = ("int16", "int32", "int64", "uint16", "uint32", "uint64", "bool")
_FLOATS = ("float16", "float32", "float64")


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if spec.dtype in ("sequence", "map", "optional", "sparse_tensor", "untyped"):
        raise ModelFileError(f"Input '{spec.name}' is a {spec.dtype}, not a tensor; such an input cannot be made.")
    if spec.shape == [UNKNOWN_RANK]:
        raise ModelFileError(f"Input '{spec.name}' does not tell its number of dimensions, so it cannot be made.")
    shape = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, str) and size not in sizes:
            raise ModelFileError(
                f"Input '{spec.name}' {spec.shape}: dimension {axis} ('{size}') is dynamic and has no value."
                f" Give one, for example {size}=224."
            )
        shape.append(sizes[size] if isinstance(size, str) else size)
    return tuple(shape)


def _example(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if spec.dtype in _FLOATS:
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype in _WHOLE_RANGE:
        return rng.integers(*_WHOLE_RANGE[spec.dtype], size=shape).astype(spec.dtype)
    if spec.dtype in _ZERO_OR_ONE:
        return rng.integers(0, 2, size=shape).astype(spec.dtype)
    known = ", ".join((*_FLOATS, *_WHOLE_RANGE, *_ZERO_OR_ONE))
    raise ModelFileError(f"Input '{spec.name}' has element type {spec.dtype}, which cannot be made (can: {known}).")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
