"""The contract of a data set: labelled images in three splits, and how they become model input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from edgekd import spec
from edgekd.datasets._resize import resized
from edgekd.errors import UsageError
from edgekd.spec import Preprocessing

__all__ = ["DataBundle", "Dataset", "InMemorySamples", "Samples", "Wanted"]


class Samples(Protocol):
    """One split, read a batch at a time."""

    @property
    def labels(self) -> Tensor:
        """Class indices, int64, shape (N,), on the CPU."""
        ...

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor:
        """Images of these samples, float32 in the preprocessing's value range, shape (B, C, H, W), on the CPU."""
        ...


@dataclass(frozen=True)
class InMemorySamples:
    """A split small enough to hold.

    Args:
        pixels: uint8 in [0, 255] or float32 in [0, 1], shape (N, C, H, W).
        labels: class indices, int64, shape (N,).
        size: (H, W) that `images` resizes to; None keeps the size of `pixels`.
    """

    pixels: Tensor
    labels: Tensor
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """See `Samples.images`."""
        chosen = resized(self.pixels[indices], self.size)
        return chosen.to(torch.float32) / 255 if chosen.dtype == torch.uint8 else chosen.to(torch.float32)


@dataclass(frozen=True)
class Wanted:
    """What the recipe asks of any data set: split, sizes and overrides of the preprocessing.

    Args:
        seed: of the validation split and of `limit_train`; a test split cut by edgekd never depends on it.
        val_fraction: share of the training samples kept for validation, in (0, 1).
        limit_train: use only this many training samples.
        size: (H, W) in pixels; None keeps the data's own.
        mean: per channel, in [0, 1]; None computes it from the training split.
        std: per channel, > 0; None computes it from the training split.
        base_folder: relative paths in options start here: the folder of the recipe.
    """

    seed: int = 0
    val_fraction: float = 0.1
    limit_train: int | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    base_folder: Path = Path(".")

    def resolve(self, path: str) -> Path:
        """The place a path of the recipe means: `~` is the home folder, relative paths start at `base_folder`."""
        return self.base_folder / Path(path).expanduser()


@dataclass(frozen=True)
class DataBundle:
    """The three splits. The test split never picks anything; validation may.

    Args:
        train: training samples.
        val: for choosing checkpoints and calibration checks.
        test: for the numbers that are reported.
        classes: label names, index is class.
        preprocessing: raw pixels to model input.
        fingerprint: hash of the content, the split and the preprocessing.
        skipped: files left out because they are broken, each with the reason.
    """

    train: Samples
    val: Samples
    test: Samples
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    fingerprint: str
    skipped: tuple[str, ...] = ()


class Dataset:
    """Loads a data set and splits it the same way every time.

    A subclass may define its own `Options`; their names must differ from the fields of `[data]` that every
    data set has (`size`, `mean`, ...), which arrive in `Wanted`.

    Args:
        options: this data set's options.
        argument: what stood after the colon of its name ("" if nothing).

    Raises:
        UsageError: an argument is given to a data set that takes none.
    """

    Options: ClassVar[type[spec.Options]] = spec.Options
    takes_argument: ClassVar[bool] = False

    def __init__(self, options: spec.Options, argument: str = "") -> None:
        if argument and not self.takes_argument:
            name = type(self).__module__.rpartition(".")[2]
            raise UsageError(f"dataset '{name}:{argument}': '{name}' takes nothing after a colon. Write '{name}'.")
        self.options = options
        self.argument = argument

    def load(self, wanted: Wanted) -> DataBundle:
        """Read and split.

        Raises:
            DataError: files missing, damaged or unusable; the message names the file.
        """
        raise NotImplementedError
