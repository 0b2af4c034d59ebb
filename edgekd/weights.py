"""Weights on disk: safetensors out; safetensors, or a state dict without code, in."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from edgekd._files import write_whole
from edgekd.errors import WeightsError

__all__ = ["load_weights", "read_metadata", "read_weights", "save_weights"]

_LISTED = 8  # keys named in one message; a wrong model misses hundreds


def save_weights(path: Path, model: nn.Module | Mapping[str, Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write a module's parameters and buffers as one safetensors file, whole or not at all.

    Args:
        path: the file; an old one is replaced.
        model: a module or its state dict.
        metadata: strings kept in the header.

    Raises:
        StorageError: the disk refused; an old file is untouched.
    """
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    # a copy of each: the format refuses tensors that share memory or have gaps
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_whole(path, safetensors.torch.save(plain, metadata=dict(metadata)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weights file, on the CPU.

    Takes safetensors, and a state dict saved by `torch.save`, alone or under the key "state_dict" or
    "model". The prefix "module." of a data-parallel wrapper is dropped.

    Raises:
        WeightsError: no such file, truncated, not weights, or a pickle that would run code.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"Weights file {path} {kind}. Check the path; it is relative to the recipe.")
    with path.open("rb") as file:
        start = file.read(9)
    tensors = _from_torch(path) if _is_torch_file(start) else _from_safetensors(path)
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if not tensors:
        raise WeightsError(f"Weights file {path} holds no tensors.")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The strings in the header of a safetensors file.

    Raises:
        WeightsError: the file is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise WeightsError(f"Weights file {path} does not exist.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _not_safetensors(path, error) from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Read a weights file into a module, which must have exactly its tensors.

    Raises:
        WeightsError: as `read_weights`; or keys that are missing, unexpected or of another shape, or a
            tensor with a value that is not finite; the message names them, and the file. The module is
            unchanged.
    """
    found = read_weights(path)
    wanted = model.state_dict()
    # counts of batches are absent from files older than the counters, and nothing here reads them
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name}: model {list(wanted[name].shape)}, file {list(found[name].shape)}"
        for name in wanted
        if name in found and wanted[name].shape != found[name].shape
    ]
    problems = _listed("missing from the file", missing) + _listed("not in the model", unexpected)
    problems += _listed("of another shape", shapes)
    if problems:
        raise WeightsError(
            f"Weights file {path} does not fit the model:\n{problems}"
            "Build the model with the options that the weights were made with, or give other weights."
        )
    broken = [name for name, value in found.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsError(f"Weights file {path} holds NaN or infinity:\n{_listed('not finite', broken)}")
    model.load_state_dict(found, strict=False)


def _is_torch_file(start: bytes) -> bool:
    # a zip archive, or the protocol byte of a pickle; a safetensors header has "{" as its ninth byte
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:9] != b"{")


def _from_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: whatever comes out is checked below
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"Weights file {path} is a pickle of Python objects, and loading it could run code: refused. Save only the"
            " state dict: torch.save(model.state_dict(), file), or write safetensors."
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise WeightsError(
            f"Weights file {path} is truncated or damaged: {_first_line(error)}. Copy it again."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"Weights file {path} is no state dict: a mapping from names to tensors, alone or under 'state_dict' or"
            " 'model'."
        )
    return {str(name): value for name, value in content.items()}


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise _not_safetensors(path, error) from error


def _not_safetensors(path: Path, error: Exception) -> WeightsError:
    size = path.stat().st_size
    reason = f"truncated: {size} bytes" if _looks_like_safetensors(path) else "neither safetensors nor a state dict"
    return WeightsError(f"Weights file {path} is {reason} ({_first_line(error)}). Copy it again, or give another file.")


def _looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] < 100_000_000


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"  {title}: {', '.join(names[:_LISTED])}{more}\n"


def _first_line(error: Exception) -> str:
    return json.dumps(str(error).split("\n")[0])[1:-1].rstrip(".")
