"""An ONNX file that somebody else wrote, read whole: nothing outside of its folder is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from edgekd.errors import MismatchError, ModelFileError, UsageError, did_you_mean

__all__ = ["external_files", "only_input", "read_onnx", "with_outputs"]

_LIMIT_BYTES = 2**31
_FLOATS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
}


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model with all of its tensors.

    Raises:
        ModelFileError: not ONNX, too large, or tensors in files that are missing or outside of its folder.
    """
    model = _parsed(path)
    total = sum(file.stat().st_size for file in _external(model, path))
    if model.ByteSize() + total >= _LIMIT_BYTES:
        raise ModelFileError(f"{path}: models of 2 GiB and more are not supported.")
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (ValueError, OSError, onnx.checker.ValidationError) as error:
        raise ModelFileError(f"{path}: its external data cannot be read: {error}.") from error
    return model


def external_files(path: Path) -> tuple[Path, ...]:
    """The files beside it that keep its tensors, sorted."""
    return _external(_parsed(path), path)


def only_input(model: onnx.ModelProto, where: str) -> tuple[str, str, list[int | str]]:
    """Name, numpy type and dimensions of the one input; a dimension of any size is a string.

    Raises:
        MismatchError: several inputs, or one that does not take floats.
    """
    defaults = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in defaults]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise MismatchError(f"{where} has {len(inputs)} inputs ({names}); a teacher must have one, the images.")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in _FLOATS:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise MismatchError(
            f"{where} takes {kind}, but the data gives normalised floats. Export it before its input is quantized."
        )
    shape: list[int | str] = [
        one.dim_value if one.HasField("dim_value") else one.dim_param or "any" for one in tensor.shape.dim
    ]
    return inputs[0].name, _FLOATS[tensor.elem_type], shape


def with_outputs(model: onnx.ModelProto, names: Iterable[str], where: str) -> onnx.ModelProto:
    """The model with more of its tensors as outputs; it is changed in place.

    Raises:
        UsageError: no node gives a tensor of that name.
    """
    there = {value.name for value in model.graph.output}
    given = [name for node in model.graph.node for name in node.output if name]
    for name in names:
        if name not in given:
            raise UsageError(f"{where} has no tensor '{name}' to tap. {did_you_mean(name, given)}")
        if name not in there:
            # without a type: the runtime works it out
            model.graph.output.append(onnx.ValueInfoProto(name=name))
            there.add(name)
    return model


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise ModelFileError(f"{path}: not an ONNX model, or truncated: {error}. Copy or export it again.") from error
    if not model.graph.node or not model.graph.output:
        raise ModelFileError(f"{path}: not an ONNX model: its graph is empty. Copy or export it again.")
    return model


def _external(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Checked here before the ONNX library follows a path: its own reader has had traversal faults."""
    folder = Path(os.path.realpath(path.parent))
    found = set()
    for tensor in _tensors([model.graph, *model.functions]):
        if not external_data_helper.uses_external_data(tensor):
            continue
        location = next((one.value for one in tensor.external_data if one.key == "location"), "")
        file = Path(os.path.realpath(folder / location))
        if not location or not file.is_relative_to(folder):
            raise ModelFileError(
                f"{path}: tensor '{tensor.name}' lies in '{location}', outside of its folder: refused."
            )
        if not file.is_file():
            raise ModelFileError(f"{path}: its external file '{location}' is missing. Copy it beside the model.")
        found.add(file)
    return tuple(sorted(found))


def _tensors(graphs: Sequence[onnx.GraphProto | onnx.FunctionProto]) -> Iterator[onnx.TensorProto]:
    """Every stored tensor, also those of attributes and of graphs inside of nodes."""
    for graph in graphs:
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for attribute in (one for node in graph.node for one in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            yield from _tensors([attribute.g, *attribute.graphs] if attribute.g.node else list(attribute.graphs))
