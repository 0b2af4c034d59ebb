"""From an image's pixels to what a model takes: the recorded preprocessing, with numpy alone.

It computes what a data set of edgekd computes: bilinear interpolation, antialiased when shrinking, rounded back to
whole levels; then the value range, then the normalisation. A bundle's `run_model.py` holds this same code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["prepare", "resize"]


def prepare(image: np.ndarray, preprocessing: dict[str, Any]) -> np.ndarray:
    """Make the model's input out of one image.

    Args:
        image: uint8, shape (H, W, C), or (H, W) for grey.
        preprocessing: size, channels, mean, std, value_range and resize, as the manifest has them.

    Returns:
        float32, shape (1, C, H, W) with H and W of `size`.

    Raises:
        ValueError: the image has another element type, or does not have the channels that the model takes.
    """
    pixels = image[:, :, None] if image.ndim == 2 else image
    channels = int(preprocessing["channels"])
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels or not pixels.size:
        raise ValueError(f"an image must be uint8 of shape (H, W, {channels}), got {image.dtype} {list(image.shape)}")
    height, width = preprocessing["size"]
    pixels = resize(pixels, (int(height), int(width)), str(preprocessing.get("resize", "bilinear")))
    low, high = preprocessing.get("value_range", (0.0, 1.0))
    values = pixels.astype(np.float32) / np.float32(255)
    if (low, high) != (0.0, 1.0):
        values = values * np.float32(high - low) + np.float32(low)
    mean, std = (np.asarray(preprocessing[name], dtype=np.float32) for name in ("mean", "std"))
    return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1)[None])


def resize(pixels: np.ndarray, size: tuple[int, int], how: str = "bilinear") -> np.ndarray:
    """Resize uint8 pixels (H, W, C) to (H, W) = `size`, without keeping the aspect ratio; uint8 again."""
    if tuple(pixels.shape[:2]) == tuple(size):
        return pixels
    if how == "nearest":
        picked: np.ndarray = pixels[_nearest(pixels.shape[0], size[0])][:, _nearest(pixels.shape[1], size[1])]
        return picked
    if how != "bilinear":
        raise ValueError(f"resize must be bilinear or nearest, got {how!r}")
    # columns first, then rows, in single precision: the order of the library that the data sets resize with
    values = _along(pixels.astype(np.float32).transpose(1, 0, 2), size[1]).transpose(1, 0, 2)
    values = _along(values, size[0])
    levels: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels


def _nearest(old: int, new: int) -> np.ndarray:
    scale = np.float32(old) / np.float32(new)
    return np.minimum((np.arange(new, dtype=np.float32) * scale).astype(np.int64), old - 1)


def _along(values: np.ndarray, new: int) -> np.ndarray:
    """Interpolate the first axis of (N, ..., C) to `new` places: a triangle as wide as the step, at least one pixel."""
    old = values.shape[0]
    if old == new:
        return values
    one, half = np.float32(1), np.float32(0.5)
    scale = np.float32(old) / np.float32(new)
    support = max(scale, one)
    result = np.empty((new, *values.shape[1:]), dtype=np.float32)
    for place in range(new):
        center = scale * (np.float32(place) + half)
        first = max(int(center - support + half), 0)
        last = min(int(center + support + half), old)
        distance = (np.arange(first, last, dtype=np.float32) - center + half) * (one / support)
        weights = np.maximum(one - np.abs(distance), np.float32(0))
        weights = weights / weights.sum(dtype=np.float32)
        total = values[first] * weights[0]
        for tap in range(1, last - first):
            total = total + values[first + tap] * weights[tap]
        result[place] = total
    return result
