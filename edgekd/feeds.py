"""Samples for a model that comes without a recipe: from an npz file, or from a folder of images.

Nothing is loaded ahead of its batch: npz members are mapped or read once, images are decoded when their batch comes.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import torch
from pydantic import ValidationError

from edgekd.artifact import file_hash
from edgekd.datasets._image_files import decoded, in_threads
from edgekd.errors import DataError, MismatchError
from edgekd.spec import Preprocessing, TensorSpec

__all__ = ["Feeds", "preprocessing_of", "read_feeds"]

LABELS = "labels"
"""The array of an npz file that holds class numbers."""

_SUFFIXES = (".jpg", ".jpeg", ".png")
_MEAN_STD = "Give --mean and --std as the model was trained with them, 0.485,0.456,0.406 for example."


class _Source(Protocol):
    def rows(self, ids: Sequence[int]) -> dict[str, np.ndarray]: ...

    def fingerprint(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Feeds:
    """Samples, by number.

    Args:
        count: how many there are.
        labels: class numbers, shape (count,), where the source has them.
        source: gives the arrays of some of them.
        batch: samples of one call; the model's own batch size where that is fixed.
    """

    count: int
    labels: np.ndarray | None
    source: _Source
    batch: int

    def batches(self, ids: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
        """Feeds for the samples `ids`, batch by batch; with a fixed batch size, what does not fill one is left out."""
        for start in range(0, len(ids) - len(ids) % self.batch if self._fixed else len(ids), self.batch):
            yield self.source.rows(ids[start : start + self.batch])

    def fingerprint(self, ids: Sequence[int]) -> str:
        """SHA-256 of the samples `ids` as the model gets them, in this order."""
        return self.source.fingerprint(ids)

    @property
    def _fixed(self) -> bool:
        return self.batch != _BATCH


_BATCH = 8  # activations of one batch are held while it is counted: more only costs memory


def read_feeds(path: Path, inputs: Sequence[TensorSpec], *, preprocessing: Preprocessing | None = None) -> Feeds:
    """Open calibration or test data for a model.

    Args:
        path: an npz file whose arrays are named like the inputs (a single array serves a single input), samples
            first, "labels" beside them if there are any; or a folder of JPEG and PNG files.
        inputs: what the model takes.
        preprocessing: of a folder's images.

    Raises:
        DataError: missing, empty, damaged, or with values that are not finite.
        MismatchError: arrays that do not fit the inputs; says what fits.
    """
    if path.is_dir():
        return _folder(path, inputs, preprocessing)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give an .npz file or a folder of images.")
    arrays = _arrays(path)
    labels = arrays.pop(LABELS, None)
    named = _named(path, arrays, inputs)
    counts = {name: len(values) for name, values in named.items()}
    count = next(iter(counts.values()))
    if len(set(counts.values())) > 1 or (labels is not None and len(labels) != count):
        listed = ", ".join(f"'{name}' {number}" for name, number in counts.items())
        raise MismatchError(f"{path}: arrays differ in their number of samples: {listed}.")
    if count == 0:
        raise DataError(f"{path}: has no samples. Give at least one.")
    return Feeds(count, labels, _Rows(named), _batch_of(inputs))


def preprocessing_of(
    model: onnx.ModelProto, inputs: Sequence[TensorSpec], *, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing | None:
    """How images become this model's input: as given, or as its metadata say; None if neither says.

    Raises:
        MismatchError: mean and std that do not fit the model's channels.
    """
    if mean is None and std is None:
        found = next((one.value for one in model.metadata_props if one.key == "edgekd.preprocessing"), None)
        return None if found is None else Preprocessing.model_validate_json(found)
    shape = inputs[0].shape if inputs else []
    if len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        raise MismatchError(f"--mean and --std are for an input of shape (B, C, H, W); this model takes {shape}.")
    channels, height, width = (int(size) for size in shape[1:])
    try:
        return Preprocessing(
            size=[height, width],
            channels=channels,
            mean=list(mean or [0.0] * channels),
            std=list(std or [1.0] * channels),
        )
    except ValidationError as error:
        raise MismatchError(f"--mean and --std: {error.errors()[0]['msg']}.") from error


class _Rows:
    """Arrays in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays

    def rows(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(values[list(ids)]) for name, values in self._arrays.items()}

    def fingerprint(self, ids: Sequence[int]) -> str:
        digest = hashlib.sha256()
        for name, values in self._arrays.items():
            digest.update(f"{name} {values.dtype} {values.shape[1:]}".encode())
            for one in ids:
                digest.update(np.ascontiguousarray(values[one]).tobytes())
        return digest.hexdigest()


class _Images:
    """Files that are decoded when they are asked for."""

    def __init__(self, files: Sequence[Path], name: str, preprocessing: Preprocessing) -> None:
        self._files, self._name, self._preprocessing = files, name, preprocessing

    def rows(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        wanted = self._preprocessing
        read = partial(decoded, channels=wanted.channels, size=(wanted.size[0], wanted.size[1]))
        pixels = torch.stack(list(in_threads(read, [self._files[i] for i in ids])))
        low, high = wanted.value_range
        return {self._name: wanted.normalise(pixels.float() / 255.0 * (high - low) + low).numpy()}

    def fingerprint(self, ids: Sequence[int]) -> str:
        digest = hashlib.sha256(self._preprocessing.model_dump_json().encode())
        for one in ids:
            digest.update(file_hash(self._files[one]).encode())
        return digest.hexdigest()


def _folder(path: Path, inputs: Sequence[TensorSpec], preprocessing: Preprocessing | None) -> Feeds:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{path}: no JPEG or PNG file in this folder or below it.")
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise MismatchError(f"{path}: a folder of images feeds one input of shape (B, C, H, W). {_wanted(inputs)}")
    if preprocessing is None:
        raise DataError(f"{path}: the model does not say how its images are normalised. {_MEAN_STD}")
    return Feeds(len(files), None, _Images(files, inputs[0].name, preprocessing), _batch_of(inputs))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"": loaded}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{path}: cannot be read as an .npz or .npy file: {reason}") from error


def _named(path: Path, arrays: dict[str, np.ndarray], inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    wanted = [spec.name for spec in inputs]
    if len(inputs) == 1 and len(arrays) == 1:
        arrays = {wanted[0]: next(iter(arrays.values()))}
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise MismatchError(
            f"{path}: no array '{missing[0]}' (has: {', '.join(arrays) or 'nothing'}). {_wanted(inputs)}"
        )
    return {spec.name: _fitting(path, arrays[spec.name], spec) for spec in inputs}


def _fitting(path: Path, values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    fits = values.ndim == len(spec.shape) and all(
        isinstance(size, str) or size == found for size, found in zip(spec.shape[1:], values.shape[1:], strict=False)
    )
    if not fits:
        raise MismatchError(f"{path}: '{spec.name}' has shape {list(values.shape)}; the model takes {spec.shape}.")
    wanted = np.dtype(spec.dtype)
    if values.dtype == wanted:
        return values
    if wanted.kind == values.dtype.kind:
        return values.astype(wanted)
    raise MismatchError(
        f"{path}: '{spec.name}' is {values.dtype}, the model takes {wanted}. Normalise it as in training first."
    )


def _batch_of(inputs: Sequence[TensorSpec]) -> int:
    first = inputs[0].shape[0] if inputs and inputs[0].shape else _BATCH
    return first if isinstance(first, int) else _BATCH


def _wanted(inputs: Sequence[TensorSpec]) -> str:
    return "The model takes " + ", ".join(f"'{one.name}' {one.dtype} {one.shape}" for one in inputs) + "."
