"""The file cache.json: written by the first builder, compared by everyone; and whether a shard is as it says."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekd._cache_folder import Store
from edgekd._cache_layout import (
    HEAD,
    Fingerprint,
    Head,
    Layout,
    TapLayout,
    bytes_per_view,
    check_same,
    columns,
    parsed,
)

__all__ = ["SHARD_BYTES", "Rows", "head_of", "is_whole"]

SHARD_BYTES = 16 << 20
_LONGEST = 1 << 20  # of a shard's description
_LENGTH = struct.Struct("<Q")  # a safetensors file starts with the length of its description


@dataclass(frozen=True)
class Rows:
    """How many rows make a shard.

    Args:
        batch_size: whole batches, so that a batch is in one shard.
        size_bytes: about so large.
    """

    batch_size: int
    size_bytes: int = SHARD_BYTES

    def fitting(self, bytes_per_view: int) -> int:
        """Rows of this many bytes each."""
        return max(1, self.size_bytes // (bytes_per_view * self.batch_size)) * self.batch_size


def head_of(store: Store, fingerprint: Fingerprint, ask: Callable[[], Mapping[str, Tensor]], shard_rows: Rows) -> Head:
    """What the cache says of itself; written first if there is nothing yet.

    Args:
        store: where it lies.
        fingerprint: what is wanted.
        ask: gives the taps of some batch.
        shard_rows: how many rows a shard may have.

    Raises:
        MismatchError: it is of other answers; names the field.
        ArtifactError: it is damaged.
    """
    if (text := store.read(HEAD)) is None:
        taps = {name: _tap_layout(values) for name, values in ask().items()}
        per_view = bytes_per_view(fingerprint, taps)
        layout = Layout(rows_per_shard=shard_rows.fitting(per_view), taps=taps, bytes_per_view=per_view)
        store.write(HEAD, Head(fingerprint=fingerprint, layout=layout).model_dump_json(indent=1).encode())
        text = store.read(HEAD)  # another builder may have been a moment later: the last one counts
    head: Head = parsed(text or b"", Head, store.place(HEAD))
    check_same(store.where, head.fingerprint, fingerprint)
    return head


def is_whole(store: Store, name: str, sizes: Mapping[str, int], head: Head, rows: int) -> bool:
    """Whether a shard is there to its last byte, with the tensors that it must have."""
    if (size := sizes.get(name, 0)) < _LENGTH.size:
        return False
    (length,) = _LENGTH.unpack(store.start_of(name, _LENGTH.size))
    if length > min(size, _LONGEST):
        return False
    try:
        described = json.loads(store.start_of(name, _LENGTH.size + length)[_LENGTH.size :])
        shapes = {one: tuple(about["shape"]) for one, about in described.items() if one != "__metadata__"}
        end = max(about["data_offsets"][1] for one, about in described.items() if one != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError):  # no description, whatever it is
        return False
    wanted = {one: (rows, *shape) for one, (_, shape) in columns(head.fingerprint, head.layout.taps).items()}
    return shapes == wanted and size == _LENGTH.size + length + end


def _tap_layout(values: Tensor) -> TapLayout:
    last = values.dim() == 4 and not values.is_contiguous()
    channels_last = last and values.is_contiguous(memory_format=torch.channels_last)
    shape = list(values.permute(0, 2, 3, 1).shape[1:] if channels_last else values.shape[1:])
    return TapLayout(shape=shape, channels_last=channels_last)
