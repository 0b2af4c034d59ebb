"""Which view of which sample stands in which row of an epoch: what a cache is filled with, and held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.augment import Augment
from edgekd.batches import Batches
from edgekd.errors import UsageError

__all__ = ["Views", "views_of"]


@dataclass(frozen=True)
class Views:
    """An epoch, in its order.

    Args:
        ids: samples, int32, shape (N,).
        rows: the inverse: the row of each sample, int64, shape (N,).
        seeds: of the views, int32, shape (N,).
        partners: ids of the samples that they are mixed with, int32, shape (N,); None without mixup.
    """

    ids: Tensor
    rows: NDArray[np.int64]
    seeds: Tensor
    partners: Tensor | None


def views_of(batches: Batches, epoch: int) -> Views:
    """What training will show in an epoch, as far as a cache has to know it."""
    order, view = batches.order(epoch), batches.view(epoch)
    augment = batches.augment
    if augment is None:
        raise UsageError("A cache is of batches with augmentation settings; give AugmentSettings() for no changes.")
    rows = np.empty(len(order), dtype=np.int64)
    rows[order.numpy()] = np.arange(len(order))
    partners = _partners(augment, order, batches.batch_size, view) if augment.settings.mixup > 0 else None
    return Views(order.to(torch.int32), rows, augment.seeds(order, epoch=view), partners)


def _partners(augment: Augment, order: Tensor, batch_size: int, view: int) -> Tensor:
    whole = torch.split(order, batch_size)
    return torch.cat([ids[augment.partners(ids, epoch=view)] for ids in whole]).to(torch.int32)
