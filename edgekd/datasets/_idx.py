"""Read IDX files, the format of MNIST and its descendants.

Reference: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", 1998: two zero bytes, an element
type, the number of dimensions, each dimension as a big-endian 32-bit integer, then the elements in C order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError

__all__ = ["find_idx", "read_idx"]

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
_PIECE = 2**24


def find_idx(folder: Path, stem: str, *, advice: str) -> Path:
    """The file called `stem`, with or without `.gz`.

    Raises:
        DataError: it is not there; the message ends with `advice`.
    """
    for name in (stem, f"{stem}.gz"):
        if (folder / name).is_file():
            return folder / name
    state = "has no" if folder.is_dir() else "does not exist; it should hold"
    raise DataError(f"{folder} {state} {stem}.gz (or {stem}). {advice}")


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read a file of unsigned bytes, gzip-compressed or raw (told by its content, not its name).

    Args:
        path: the file.
        dimensions: how many axes the array must have: 1 for labels, 3 for images.

    Raises:
        DataError: missing, not an IDX file of unsigned bytes, truncated, or longer than it says.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not packed:
                return _read(raw, path, dimensions)
            with gzip.open(raw) as unpacked:
                return _read(unpacked, path, dimensions)  # type: ignore[arg-type]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip file is truncated or damaged ({error}). Fetch it again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _read(stream: IO[bytes], path: Path, dimensions: int) -> NDArray[np.uint8]:
    header = stream.read(4 + 4 * dimensions)
    if header[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)) or len(header) < 4 + 4 * dimensions:
        raise DataError(
            f"{path}: not an IDX file of {dimensions}-dimensional unsigned bytes (it starts with {header[:4].hex(' ')},"
            f" should be 00 00 08 {dimensions:02x}). Fetch it again."
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    wanted = math.prod(shape)
    # one byte more tells a file that is too long; piece by piece, since a damaged header may promise any amount
    content = bytearray()
    while len(content) <= wanted and (piece := stream.read(min(wanted + 1 - len(content), _PIECE))):
        content += piece
    if len(content) != wanted:
        found = f"only {len(content)}" if len(content) < wanted else "more"
        raise DataError(
            f"{path}: its header promises {wanted} bytes for the shape {shape}, it holds {found}. Fetch it again."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
