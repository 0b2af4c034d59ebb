"""Which weights x86 processors without VNNI can sum exactly: neighbours along K, two by two.

Their kernels multiply unsigned activation codes by signed weight codes and add each pair of neighbouring products in
16 bits, cut off at 32767 without a word (the instruction is vpmaddubsw). With activations up to 255 a pair is exact as
long as the codes of its two weights sum to at most 128 in magnitude: 255 * 128 = 32640. So a single weight may have all
its 8 bits; only neighbours of the same sign share them. Kernels of depthwise convolutions add in 32 bits.

Which weights are neighbours: K runs over the kernel's places and, fastest, over the inputs of one group. Runtimes start
either from the first weight of the row, or anew at every place of the kernel, with an odd number of inputs padded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LARGEST_SUM", "crowded", "largest_pair"]

LARGEST_SUM = 127.5
"""Of two neighbours' magnitudes over the scale: rounding adds at most 1/2 to each, and 128.5 is no whole number."""


def largest_pair(weight: Tensor) -> Tensor:
    """The largest |a + b| of two neighbours a and b in each output channel.

    Of opposite signs they never exceed the larger of the two, so together with the largest magnitude this bounds
    every sum of products.

    Args:
        weight: output channels first: (O, I / groups, kernel...) of a convolution, (O, K) of a linear layer.

    Returns:
        Shape (O,), in the weight's type.

    >>> largest_pair(torch.tensor([[3, 4, -5, 1], [-2, -2, 0, 9]]))
    tensor([7, 9])
    """
    found = None
    for rows in _rows(weight.detach()):
        largest = rows.sum(-1, dtype=rows.dtype).abs().amax(1)
        found = largest if found is None else torch.maximum(found, largest)
    if found is None:
        raise RuntimeError("a weight has at least one row")
    return found


def crowded(codes: Tensor, most: Tensor) -> Tensor:
    """Which codes have a neighbour with which they sum to more than `most` in magnitude: booleans of the same shape.

    Args:
        codes: output channels first, shape (O, ...).
        most: >= 0, for each channel, shape (O,).
    """
    found = torch.zeros_like(codes, dtype=torch.bool)
    places = torch.arange(codes.numel(), device=codes.device).view(codes.shape) + 1  # 0 is padding
    for rows, where in zip(_rows(codes), _rows(places), strict=True):
        over = where[rows.sum(-1).abs() > most[:, None]].flatten()
        found.view(-1)[over[over > 0] - 1] = True
    return found


def _rows(weight: Tensor) -> Iterator[Tensor]:
    """The neighbours, shape (O, pairs, 2), by each of the ways in which runtimes pair them."""
    rows = weight.movedim(1, -1) if weight.ndim > 2 else weight
    yield _paired(rows)
    if rows.ndim > 2 and rows.shape[-1] % 2 and rows.shape[-1] > 1:
        yield _paired(F.pad(rows, (0, 1)))


def _paired(rows: Tensor) -> Tensor:
    flat = rows.flatten(1)
    flat = F.pad(flat, (0, 1)) if flat.shape[1] % 2 else flat
    return flat.view(len(flat), -1, 2)
