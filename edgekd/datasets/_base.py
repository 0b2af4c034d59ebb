"""The contract of a data set: labelled images in three splits, and how they become model input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from edgekd.spec import Options, Preprocessing

__all__ = ["DataBundle", "Dataset", "InMemorySamples", "Samples", "Wanted"]


class Samples(Protocol):
    """One split, read a batch at a time."""

    labels: Tensor
    """Class indices, int64, shape (N,)."""

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor:
        """Images of these samples, float32 in the preprocessing's value range, shape (B, C, H, W)."""
        ...


@dataclass(frozen=True)
class InMemorySamples:
    """A split small enough to hold: uint8 or float32 images, shape (N, C, H, W)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        chosen = self.pixels[indices]
        return chosen.to(torch.float32) / 255 if chosen.dtype == torch.uint8 else chosen.to(torch.float32)


@dataclass(frozen=True)
class Wanted:
    """What the recipe asks of any data set: split, sizes and overrides of the preprocessing."""

    seed: int = 0
    val_fraction: float = 0.1
    limit_train: int | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    base_folder: Path = Path(".")
    """Relative paths in options start here: the folder of the recipe."""


@dataclass(frozen=True)
class DataBundle:
    """The three splits. The test split never picks anything; validation may.

    Args:
        train: training samples.
        val: for choosing checkpoints and calibration checks.
        test: for the numbers that are reported.
        classes: label names, index is class.
        preprocessing: raw pixels to model input.
        fingerprint: hash of the content and the split.
    """

    train: Samples
    val: Samples
    test: Samples
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    fingerprint: str


class Dataset:
    """Loads a data set and splits it the same way every time.

    Args:
        options: this data set's options.
        argument: what stood after the colon of its name ("" if nothing).
    """

    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options, argument: str = "") -> None:
        self.options = options
        self.argument = argument

    def load(self, wanted: Wanted) -> DataBundle:
        """Read and split.

        Raises:
            DataError: files missing, damaged or unusable; the message names the file.
        """
        raise NotImplementedError


def split_indices(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split sample indices into (rest, chosen), class by class, the same for the same seed.

    Args:
        labels: class of each sample, shape (N,).
        fraction: share of every class that is chosen, in (0, 1); at least one sample of each class
            that has two or more.
        seed: of the shuffle within a class.
    """
    rng = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rng.shuffle(members)
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        chosen.append(members[:count])
    picked = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)
    rest = np.setdiff1d(np.arange(len(labels)), picked)
    return rest, picked
