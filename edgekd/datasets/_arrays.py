"""Arrays from outside, checked and brought to one form: (N, C, H, W) pixels and int64 labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.datasets._base import InMemorySamples
from edgekd.errors import DataError

__all__ = ["Layout", "class_names", "samples_from_arrays"]

Layout = Literal["NHWC", "NCHW"]
_LIKELY_CHANNELS = (1, 3, 4)


def samples_from_arrays(
    images: Any, labels: Any, *, layout: Layout, source: str, unlabelled: bool = False
) -> InMemorySamples:
    """Check images and labels that belong together.

    Args:
        images: (N, H, W) for grey, or four dimensions in `layout` order; integers in [0, 255] or floats in [0, 1].
        labels: integers >= 0, shape (N,).
        layout: axis order of four-dimensional images.
        source: where they came from, for messages.
        unlabelled: a label of -1 is taken, and says that a sample has none; one sample at least must have one.

    Returns:
        uint8 or float32 pixels, shape (N, C, H, W), and int64 labels.

    Raises:
        DataError: empty, of different lengths, NaN, out of range, or of a shape or type that is not as above.
    """
    pixels = _pixels(_as_array(images, "images", source), layout, source)
    indices = _labels(_as_array(labels, "labels", source), source, lowest=-1 if unlabelled else 0)
    if len(pixels) != len(indices):
        raise DataError(
            f"{source}: {len(pixels)} images but {len(indices)} labels. Each image needs one label, in the same order."
        )
    return InMemorySamples(_tensor(pixels), _tensor(indices))


def class_names(names: Sequence[str] | None, labels: Sequence[Tensor], *, source: str) -> tuple[str, ...]:
    """The label names: those given, or the class indices as text.

    Raises:
        DataError: a name is there twice, or a label has no name.
    """
    highest = max(int(part.max()) for part in labels)
    if names is None:
        return tuple(str(k) for k in range(highest + 1))
    if len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise DataError(f"{source}: class name '{twice}' is there twice. Give every class its own name.")
    if highest >= len(names):
        raise DataError(
            f"{source}: label {highest} is out of range for {len(names)} classes ({', '.join(list(names)[:5])}, ...)."
            f" Labels must be in [0, {len(names) - 1}]."
        )
    return tuple(names)


def _as_array(values: Any, what: str, source: str) -> NDArray[Any]:
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:  # ragged nested lists
        raise DataError(f"{source}: {what} are not one array: {error}. All must have one shape.") from error
    if array.dtype == object:
        raise DataError(f"{source}: {what} hold Python objects, not numbers. All must be numbers of one shape.")
    return array


def _pixels(images: NDArray[Any], layout: Layout, source: str) -> NDArray[Any]:
    if images.ndim not in (3, 4):
        raise DataError(
            f"{source}: images must have the shape (N, H, W) or four dimensions in layout {layout}, got {images.shape}."
        )
    if 0 in images.shape:
        raise DataError(f"{source}: there are no images in an array of shape {images.shape}. Give at least one.")
    if images.ndim == 3:
        return _ranged(images[:, np.newaxis], source)
    _refuse_other_layout(images.shape, layout, source)
    return _ranged(images if layout == "NCHW" else images.transpose(0, 3, 1, 2), source)


def _refuse_other_layout(shape: tuple[int, ...], layout: Layout, source: str) -> None:
    """An image of 3 x 32 pixels with 32 channels is 32 x 32 in RGB with its axes mixed up."""
    first, last = shape[1], shape[3]
    channels, other = (last, first) if layout == "NHWC" else (first, last)
    if channels not in _LIKELY_CHANNELS and other in _LIKELY_CHANNELS:
        right = "NCHW" if layout == "NHWC" else "NHWC"
        raise DataError(
            f'{source}: images of shape {shape} read as {layout} have {channels} channels. Set layout = "{right}".'
        )


def _ranged(images: NDArray[Any], source: str) -> NDArray[Any]:
    """uint8 or float32 pixels, or an error that says what is out of range."""
    kind = images.dtype.kind
    if kind not in "uif":
        raise DataError(f"{source}: images must be integers or floats, got {images.dtype}.")
    if images.dtype == np.uint8:
        return images
    low, high = images.min(), images.max()  # NaN wins both
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[0])
        raise DataError(f"{source}: image {bad} holds NaN or infinity. Repair or remove it.")
    top = 1 if kind == "f" else 255
    if low < 0 or high > top:
        advice = "Scale them to [0, 1], or store uint8." if kind == "f" else "Scale them to [0, 255]."
        noun = "float" if kind == "f" else "integer"
        raise DataError(f"{source}: {noun} images must be in [0, {top}], got values from {low:g} to {high:g}. {advice}")
    return images.astype(np.float32 if kind == "f" else np.uint8)


def _labels(labels: NDArray[Any], source: str, *, lowest: int) -> NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        raise DataError(
            f"{source}: labels must be integers of shape (N,), got {labels.dtype} of shape {labels.shape}."
            " Store the class index of each image."
        )
    if len(labels) == 0:
        raise DataError(f"{source}: there are no labels. Give one per image.")
    if labels.min() < lowest:
        bad = int(np.flatnonzero(labels < lowest)[0])
        raise DataError(f"{source}: label {labels[bad]} of sample {bad} is negative. Labels are indices from 0.")
    if labels.max() < 0:
        raise DataError(f"{source}: no sample has a label, so there are no classes. Label some samples of each class.")
    return labels.astype(np.int64)


def _tensor(array: NDArray[Any]) -> Tensor:
    # a copy: what the caller does to its array later must not change the data set, nor may it be read-only
    return torch.from_numpy(np.array(array, order="C", copy=True))
