"""Read JPEG and PNG files: quick look at all of them first, pixels when they are needed."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from edgekd._background import background
from edgekd.datasets._resize import resized
from edgekd.errors import DataError

__all__ = ["ImageFacts", "decoded", "in_threads", "looked_at"]

_EDGE_BYTES = 4096
_END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_FORMATS = ("JPEG", "PNG")
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap width and height
# what Pillow's JPEG and PNG readers raise on damaged files
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class ImageFacts:
    """What is known of a file without decoding it.

    Args:
        size: (H, W) in pixels, upright.
        digest: hash of the file's length, first and last 4 KiB.
    """

    size: tuple[int, int]
    digest: bytes


def looked_at(path: Path, *, thoroughly: bool) -> ImageFacts:
    """Look at a file's header and end; decode it too when the end is not where it should be, or if asked.

    Args:
        path: a JPEG or PNG file.
        thoroughly: decode every pixel.

    Raises:
        DataError: it is not a JPEG or PNG file, or it is damaged.
    """
    with _damage_named(path), path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(_EDGE_BYTES)
        file.seek(max(0, length - _EDGE_BYTES))
        tail = file.read(_EDGE_BYTES)
        file.seek(0)
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION, 1) >= 5:
                width, height = height, width
            if thoroughly or _END_MARKERS[image.format or "PNG"] not in tail:
                image.load()
    return ImageFacts((height, width), hashlib.sha256(f"{length}\n".encode() + head + tail).digest())


def decoded(path: Path, *, channels: int, size: tuple[int, int]) -> Tensor:
    """The file's pixels, turned upright by its EXIF orientation and resized.

    Args:
        path: a JPEG or PNG file.
        channels: 1 converts to grey, 3 to RGB; transparency is dropped.
        size: (H, W) in pixels.

    Returns:
        uint8, shape (C, H, W).

    Raises:
        DataError: the file is damaged or gone.
    """
    with _damage_named(path), Image.open(path, formats=_FORMATS) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would saturate, not scale
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        pixels = np.array(upright.convert("L" if channels == 1 else "RGB"))
    hwc = torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels))
    return resized(hwc.permute(2, 0, 1)[None], size)[0].contiguous()


def in_threads(function: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
    """`map` on a few threads: Pillow decodes outside the interpreter lock. Order is kept."""
    workers = min(8, len(items), os.cpu_count() or 1)
    if workers <= 1:
        yield from map(function, items)
        return
    with background("images", workers) as pool:
        yield from pool.map(function, items)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is gone.") from error
    except _DAMAGE as error:
        reason = "not a JPEG or PNG image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: {reason or type(error).__name__}") from error
