"""From checked samples to a `DataBundle`: splits, sizes, mean and std, fingerprint."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.datasets._base import DataBundle, InMemorySamples, Samples, Wanted
from edgekd.datasets._resize import resized_once
from edgekd.datasets._splits import Indices, check_class_counts, limited, split_indices, split_test
from edgekd.errors import DataError
from edgekd.spec import Preprocessing

__all__ = ["content_hash", "in_memory_bundle", "preprocessing_of"]

_RESIZE_ONCE_BYTES = 512 * 2**20
_STATISTICS_SAMPLES = 100_000
_CHUNK = 512


def in_memory_bundle(
    pool: InMemorySamples,
    test: InMemorySamples | None,
    *,
    classes: Sequence[str],
    wanted: Wanted,
    source: str,
    test_fraction: float = 0.2,
) -> DataBundle:
    """Cut a pool of samples into the splits of a bundle.

    Args:
        pool: what may be learned from: training and validation, and the test split if `test` is None. Samples without
            label (-1) are for training only.
        test: the data set's own test samples.
        classes: label names.
        wanted: split, sizes and overrides.
        source: where the samples came from, for messages.
        test_fraction: share of every class of the pool that becomes the test split, if `test` is None.

    Raises:
        DataError: a class is too small to be in every split, or an override does not fit.
    """
    labels = pool.labels.numpy()
    rest, unlabelled = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    check_class_counts(labels[rest], classes, least=2 if test else 3, source=source)
    own = rest[:0]
    if test is None:
        rest, own = (rest[part] for part in split_test(labels[rest], test_fraction))
    held = split_indices(labels[rest], wanted.val_fraction, wanted.seed)
    train, val = np.sort(np.concatenate([rest[held[0]], unlabelled])), rest[held[1]]
    train = train[limited(labels[train], wanted.limit_train, seed=wanted.seed)]
    learned, held_out = _chosen(pool, train, wanted), _chosen(pool, val, wanted)
    tested = _chosen(pool, own, wanted) if test is None else _chosen(test, None, wanted)
    if tested.images(torch.arange(1)).shape != learned.images(torch.arange(1)).shape:
        raise DataError(
            f"{source}: training images have the shape {tuple(pool.pixels.shape[1:])} (C, H, W), test images"
            f" {tuple(tested.pixels.shape[1:])}. Set data.size, and store both with the same channels."
        )
    preprocessing = preprocessing_of(learned, wanted, source=source)
    content = [pool.pixels.numpy(), labels, train, val, own]
    content += [] if test is None else [test.pixels.numpy(), test.labels.numpy()]
    return DataBundle(
        train=learned,
        val=held_out,
        test=tested,
        classes=tuple(classes),
        preprocessing=preprocessing,
        fingerprint=content_hash(content, classes, preprocessing),
    )


def preprocessing_of(train: Samples, wanted: Wanted, *, source: str) -> Preprocessing:
    """Preprocessing of images as `train` gives them; mean and std are from the training split alone.

    Values are rounded to six digits, so that the sums' order (threads, vector width) does not reach the recipe's
    hashes. Of more than 100,000 training samples, that many, evenly spaced, are looked at.

    Raises:
        DataError: an override has another number of channels or is not usable, or a channel is constant.
    """
    _, channels, height, width = train.images(torch.arange(1)).shape
    for name, given in (("mean", wanted.mean), ("std", wanted.std)):
        if given is not None and len(given) != channels:
            raise DataError(
                f"{source}: data.{name} has {len(given)} values but the images have {channels} channels."
                " Give one value per channel."
            )
    if not all(math.isfinite(value) for value in (wanted.mean or ()) + (wanted.std or ())):
        raise DataError(f"{source}: data.mean and data.std must be finite, got {wanted.mean} and {wanted.std}.")
    if wanted.std is not None and min(wanted.std) <= 0:
        raise DataError(f"{source}: data.std must be > 0, got {list(wanted.std)}.")
    mean, std = wanted.mean, wanted.std
    if mean is None or std is None:
        found_mean, found_std = _statistics(train)
        mean, std = mean or found_mean, std or found_std
    if min(std) <= 0:
        raise DataError(
            f"{source}: channel {std.index(min(std))} has the same value in every training image, so it cannot be"
            " scaled to unit variance. Drop the channel, or set data.std."
        )
    return Preprocessing(size=[height, width], channels=channels, mean=list(mean), std=list(std))


def content_hash(
    content: Iterable[NDArray[np.generic] | bytes], classes: Sequence[str], preprocessing: Preprocessing
) -> str:
    """sha256 over content, class names and preprocessing, each part with its type and shape."""
    digest = hashlib.sha256()
    for part in (*content, "\n".join(classes).encode(), preprocessing.model_dump_json().encode()):
        if isinstance(part, bytes):
            digest.update(f"bytes {len(part)}\n".encode() + part)
        else:
            digest.update(f"{part.dtype.str} {part.shape}\n".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _chosen(samples: InMemorySamples, indices: Indices | None, wanted: Wanted) -> InMemorySamples:
    """The samples at `indices` in the wanted size: resized now if the result is small enough to keep."""
    if indices is not None:
        where = torch.from_numpy(indices)
        samples = InMemorySamples(samples.pixels[where], samples.labels[where])
    if wanted.size is None:
        return samples
    after = samples.pixels[:, :, 0, 0].numel() * math.prod(wanted.size) * samples.pixels.element_size()
    if after > _RESIZE_ONCE_BYTES:
        return replace(samples, size=wanted.size)
    return replace(samples, pixels=resized_once(samples.pixels, wanted.size))


def _statistics(train: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in float64."""
    ids = torch.arange(len(train))[:: max(1, len(train) // _STATISTICS_SAMPLES)]
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    count = 0
    for chunk in torch.split(ids, _CHUNK):
        images = train.images(chunk).to(torch.float64)
        total = total + images.sum(dim=(0, 2, 3))
        squares = squares + images.square().sum(dim=(0, 2, 3))
        count += images.numel() // images.shape[1]
    mean = torch.as_tensor(total) / count
    variance = (torch.as_tensor(squares) / count - mean.square()).clamp_min(0.0)
    return _rounded(mean), _rounded(variance.sqrt())


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
