"""What a teacher cache says about itself: whose answers it holds, to what, and how its rows lie in its files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import ValidationError

from edgekd.errors import ArtifactError, MismatchError
from edgekd.recipe import AugmentSettings
from edgekd.spec import Frozen, Preprocessing

__all__ = [
    "HEAD",
    "Dtype",
    "EpochList",
    "Fingerprint",
    "Head",
    "Layout",
    "ShardEntry",
    "TapLayout",
    "check_same",
    "columns",
    "list_name",
    "named_epoch",
    "parsed",
    "shard_name",
    "torch_dtype",
]

HEAD = "cache.json"
_LIST = "shards.json"
_INT16_CLASSES = 32768
_FIRST_DIFFERENT = "{where} holds other answers: its {field} is {theirs!r}, this recipe's is {ours!r}. {then}"

Dtype = Literal["float32", "float16", "bfloat16"]


class Fingerprint(Frozen):
    """All that decides the answers in a cache, compared field by field before anything is read or added.

    How many epochs of views there are is no part of it: a cache with more of them holds the same first ones. What a
    setting changes, a trained teacher for instance, stands after the settings: the first difference is the cause.

    Args:
        preprocessing: raw pixels to inputs.
        augment: the random changes.
        augment_version: of the code that makes them.
        seed: of order and changes.
        samples: rows of an epoch.
        classes: K.
        top_k: how many of the largest logits are kept; None for all.
        dtype: of the logits and taps that are kept.
        taps: layers whose outputs are kept.
        precision: in which the teacher computed.
        batch_size: with mixup, whose partners are of the same batch; None without.
        data: fingerprint of the data set, its split included.
        teacher: id of the teacher's artifact.
    """

    preprocessing: Preprocessing
    augment: AugmentSettings
    augment_version: int
    seed: int
    samples: int
    classes: int
    top_k: int | None
    dtype: Dtype
    taps: list[str]
    precision: str
    batch_size: int | None
    data: str
    teacher: str


class TapLayout(Frozen):
    """One row of a tap.

    Args:
        shape: as stored.
        channels_last: stored as (H, W, C) because the teacher computed so; read back as (C, H, W) in that layout, so
            that sums over it run in the same order as online.
    """

    shape: list[int]
    channels_last: bool


class Layout(Frozen):
    """How rows lie in files.

    Args:
        rows_per_shard: of every shard but an epoch's last.
        taps: by name.
        bytes_per_view: of one row, everything counted but the files' headers.
    """

    rows_per_shard: int
    taps: dict[str, TapLayout]
    bytes_per_view: int


class Head(Frozen):
    """The file cache.json."""

    format: Literal[1] = 1
    fingerprint: Fingerprint
    layout: Layout

    @property
    def shards(self) -> int:
        """Files of one epoch."""
        return math.ceil(self.fingerprint.samples / self.layout.rows_per_shard)

    def rows_of(self, shard: int) -> int:
        """Rows of one file."""
        return min(self.layout.rows_per_shard, self.fingerprint.samples - shard * self.layout.rows_per_shard)


class ShardEntry(Frozen):
    """One file of a complete epoch."""

    name: str
    rows: int
    bytes: int
    sha256: str


class EpochList(Frozen):
    """The file shards.json of an epoch: written when all its shards are there."""

    shards: list[ShardEntry]


def named_epoch(view: int) -> str:
    """The folder of an epoch of views, counted from 0."""
    return f"epoch-{view:04}"


def shard_name(view: int, shard: int) -> str:
    """A shard's file, below the cache."""
    return f"{named_epoch(view)}/shard-{shard:05}.safetensors"


def list_name(view: int) -> str:
    """The list of an epoch's shards, below the cache."""
    return f"{named_epoch(view)}/{_LIST}"


def torch_dtype(name: Dtype) -> torch.dtype:
    """The element type that a cache calls by this name."""
    found: torch.dtype = getattr(torch, name)
    return found


def columns(fingerprint: Fingerprint, taps: Mapping[str, TapLayout]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Element type and row shape of every tensor of a shard, by its name there."""
    kept = torch_dtype(fingerprint.dtype)
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"ids": (torch.int32, ()), "seeds": (torch.int32, ())}
    if fingerprint.batch_size is not None:
        found["partners"] = (torch.int32, ())
    if fingerprint.top_k is None:
        found["logits"] = (kept, (fingerprint.classes,))
    else:
        found["values"] = (kept, (fingerprint.top_k,))
        found["classes"] = (index_dtype(fingerprint.classes), (fingerprint.top_k,))
        found["others"] = (torch.float32, ())
    return found | {f"tap.{name}": (kept, tuple(tap.shape)) for name, tap in taps.items()}


def index_dtype(classes: int) -> torch.dtype:
    """The smallest signed integer that can number the classes."""
    return torch.int16 if classes <= _INT16_CLASSES else torch.int32


def bytes_per_view(fingerprint: Fingerprint, taps: Mapping[str, TapLayout]) -> int:
    """Bytes of one row."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in columns(fingerprint, taps).values())


def check_same(where: str, theirs: Fingerprint, ours: Fingerprint) -> None:
    """Refuse a cache of other answers.

    Raises:
        MismatchError: names the first field that differs, and both values.
    """
    for (field, left), (_, right) in zip(_flat(theirs), _flat(ours), strict=True):
        if left != right:
            then = "Choose another distill.cache.path, or remove that cache."
            raise MismatchError(_FIRST_DIFFERENT.format(where=where, field=field, theirs=left, ours=right, then=then))


def parsed(text: bytes, model: type[Any], place: str) -> Any:
    """A file of the cache as a value.

    Raises:
        ArtifactError: it is damaged, or of another version of edgekd.
    """
    try:
        return model.model_validate_json(text)
    except (ValidationError, ValueError) as error:
        raise ArtifactError(
            f"{place} is damaged or of another version of edgekd. Remove the cache and build it again."
        ) from error


def _flat(values: Fingerprint) -> Iterator[tuple[str, Any]]:
    for name, value in values.model_dump(mode="json").items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", one) for inner, one in value.items())
        else:
            yield name, value
