"""Counting values into bins: the hot loop of calibration, with exact results.

Bin k of a side holds the magnitudes in (k w, (k + 1) w], w a power of two. So the index of a value x is
ceil(|x| / w) - 1, and 0 for x = 0. Multiplying x by the float32 just below 1 / w gives the float32 just below x / w,
because the exact product (x / w) (1 - 2^-24) lies between the two and never nearer to x / w. Cutting off its fraction
then gives the index: one multiplication and one conversion, not a multiplication, a ceil, a subtraction and a clamp.

Values in the processor's memory are counted by NumPy in blocks that stay in its cache, values on a device by torch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["BINS", "Rows", "count", "extremes", "rows_of"]

BINS = 4096

Rows = np.ndarray | Tensor
"""A float32 matrix (B, N): NumPy's in the processor's memory, torch's on a device."""

_HALF = BINS // 2
_BLOCK = 1 << 16  # values: 256 KiB of float32, which a second-level cache holds


def rows_of(values: Tensor | np.ndarray) -> Rows:
    """Values as a matrix (B, N): one row a sample, its values in any order; a view where the layout allows it.

    Args:
        values: any shape and type of float; axis 0 is the sample axis, and a scalar is one sample.
    """
    if isinstance(values, Tensor):
        tensor: Tensor = values.detach().to(torch.float32)
        if tensor.device.type != "cpu":
            return tensor.reshape(len(tensor) if tensor.ndim else 1, -1 if tensor.numel() else 0)
        values = tensor.numpy()
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        values = np.atleast_1d(np.asarray(values, dtype=np.float32))
    # in the order of the memory, so that a channels-last activation is not copied
    axes = sorted(range(1, values.ndim), key=lambda axis: -values.strides[axis])
    return values.transpose(0, *axes).reshape(len(values), -1 if values.size else 0)


def extremes(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest value of each row of a matrix (B, N), N >= 1.

    Returns:
        two arrays of shape (B,), NaN where a row has one.
    """
    if isinstance(rows, Tensor):
        return rows.amin(dim=1).cpu().numpy(), rows.amax(dim=1).cpu().numpy()
    low = np.full(len(rows), np.inf, np.float32)
    high = np.full(len(rows), -np.inf, np.float32)
    for place, block in _blocks(rows):
        # np.minimum hands a NaN on
        np.minimum(low[place], block.min(axis=1), out=low[place])
        np.maximum(high[place], block.max(axis=1), out=high[place])
    return low, high


def count(rows: Rows, limit: float, *, signed: bool) -> np.ndarray:
    """How many values fall into each bin of [-limit, limit]: int64, shape (BINS,).

    Args:
        rows: (B, N), finite and of magnitude `limit` or less.
        limit: a power of two.
        signed: whether a value may be below 0.
    """
    # the float32 just below a power of two
    factor = np.float32(_HALF / limit * (1.0 - 2.0**-24))
    if isinstance(rows, Tensor):
        return _count_on_device(rows, float(factor))
    flat = rows.reshape(-1)
    counts = np.zeros(BINS, np.int64)
    index = np.empty(min(flat.size, _BLOCK), np.int16)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        found = index[: block.size]
        np.multiply(block, factor, out=found, casting="unsafe")
        if signed:
            found += _HALF
            # the sign decides the side, even where a tiny value's product underflows to 0
            np.subtract(found, np.less(block, 0.0).view(np.int8), out=found)
        counted = counts if signed else counts[_HALF:]
        # torch counts 16-bit indices as they are; NumPy would copy them to 64 bits first
        counted += torch.bincount(torch.from_numpy(found), minlength=counted.size).numpy()
    return counts


def _count_on_device(rows: Tensor, factor: float) -> np.ndarray:
    index = (rows * factor).to(torch.int32) + _HALF - (rows < 0).to(torch.int32)
    counts: np.ndarray = torch.bincount(index.reshape(-1), minlength=BINS).cpu().numpy()
    return counts


def _blocks(rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Pieces of a matrix of about `_BLOCK` values, each with the rows it is of: several rows, or a part of one."""
    samples, length = rows.shape
    step = max(1, _BLOCK // length)
    for first in range(0, samples, step):
        place = slice(first, first + step)
        for start in range(0, length, _BLOCK):
            yield place, rows[place, start : start + _BLOCK]
