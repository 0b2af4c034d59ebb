"""Tensors that an ONNX file keeps in other files: all of them, and whether each is safe to open."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from edgekd.errors import ModelFileError

__all__ = ["check_external", "is_external", "location_of", "stored_tensors"]


def stored_tensors(graph: onnx.GraphProto, functions: Iterable[onnx.FunctionProto] = ()) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a graph, its attributes, its subgraphs and its functions."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _attribute_tensors(graph.node)
    for function in functions:
        yield from _attribute_tensors(function.node)


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from stored_tensors(graph)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor names another file."""
    # a tensor may carry entries and say it is inline: readers differ on which one they believe, so both count
    return tensor.data_location == onnx.TensorProto.EXTERNAL or bool(tensor.external_data)


def location_of(tensor: onnx.TensorProto) -> str:
    """The file that an external tensor names, "" if none."""
    return _entries(tensor).get("location", "")


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def check_external(tensor: onnx.TensorProto, folder: Path, path: Path) -> int:
    """Check where a tensor is kept.

    Args:
        tensor: the tensor.
        folder: the real path of the model's folder.
        path: the model's file, for messages.

    Returns:
        Bytes that it takes from another file, 0 when it is inline.

    Raises:
        ModelFileError: it is outside the folder, behind a link, missing, or cut short.
    """
    if not is_external(tensor):
        return 0
    entries = _entries(tensor)
    location = entries.get("location", "")
    where = f"{path}: tensor '{tensor.name}' is in '{location}'"
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    absolute = PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).anchor)
    if not location or absolute or ".." in parts or "\0" in location:
        raise ModelFileError(f"{where}, outside the model's folder. Put the file beside the model and export it again.")
    file = folder / location
    if os.path.realpath(file) != os.path.normpath(file):
        raise ModelFileError(f"{where}, which is a symbolic link. Replace it by the file itself.")
    if not file.is_file():
        raise ModelFileError(f"{where}, which is not there. Copy it beside the model; the two travel together.")
    if file.stat().st_nlink > 1:
        raise ModelFileError(f"{where}, which is a hard link to another file. Replace it by a copy.")
    return _extent(entries, file.stat().st_size, where)


def _extent(entries: Mapping[str, str], size: int, where: str) -> int:
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", size - offset))
    except ValueError as error:
        raise ModelFileError(f"{where} with an offset or length that is not a number. Export it again.") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelFileError(
            f"{where} at bytes {offset} to {offset + length}, but that file has {size}. It is truncated; copy it again."
        )
    return length
