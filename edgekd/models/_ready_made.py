"""What every ready-made teacher shares: never trained, fed in pieces that fit, its answers checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from edgekd.errors import MismatchError, ModelFileError, UsageError
from edgekd.models._base import ModelFactory

__all__ = ["ReadyMade", "ReadyNetwork", "check_classes", "check_input", "check_shape", "file_of", "in_pieces"]


class ReadyMade(ModelFactory):
    """A teacher that answers as it is."""

    takes_argument = True
    ready_made = True

    def sources(self) -> tuple[Path, ...]:
        """The file itself."""
        return (Path(self.argument),)


class ReadyNetwork(nn.Module):
    """A module that stays in evaluation mode, and whose copies are itself: there is nothing in it to change.

    Attributes:
        parameter_count: how many weights it has; None if that cannot be told.
    """

    parameter_count: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Stay as it is."""
        return self

    def __deepcopy__(self, memo: Mapping[int, object]) -> Self:
        """Itself: what a runtime holds cannot be copied."""
        return self


def file_of(factory: ModelFactory, name: str, suffix: str) -> Path:
    """The file that a member's argument names.

    Raises:
        UsageError: no argument.
        ModelFileError: no such file.
    """
    if not factory.argument:
        raise UsageError(f"Model '{name}' needs a file. Write {name}:PATH{suffix}.")
    path = Path(factory.argument)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise ModelFileError(f"Model file {path} {kind}. Check the path; it is relative to the recipe.")
    return path


def check_shape(theirs: Sequence[object], input_shape: tuple[int, int, int], where: str) -> None:
    """Compare the input that a file declares with what the data gives, before the first run.

    Args:
        theirs: its dimensions with the batch; what is not an int may have any size.
        input_shape: (C, H, W) of the data.
        where: what the file is called.

    Raises:
        MismatchError: names both.
    """
    ours = ("B", *input_shape)
    same = len(theirs) == len(ours) and all(
        not isinstance(dimension, int) or dimension == size
        for dimension, size in zip(theirs[1:], input_shape, strict=True)
    )
    if not same:
        raise MismatchError(
            f"{where} takes an input of shape {_shown(theirs)}, the data gives {_shown(ours)} (batch, channels, height,"
            " width). Give [data] its size and channels, or export it for the data's."
        )


def check_input(inputs: Tensor, input_shape: tuple[int, int, int], where: str) -> None:
    """Hold a batch against the shape that the network was built for.

    Raises:
        MismatchError: names both.
    """
    if tuple(inputs.shape[1:]) != input_shape:
        raise MismatchError(
            f"{where} was built for inputs of shape {('B', *input_shape)}, got {tuple(inputs.shape)}.".replace("'", "")
        )


def check_classes(logits: Tensor, rows: int, classes: int, where: str) -> None:
    """Hold logits against the number of samples and classes.

    Raises:
        MismatchError: names both.
    """
    if logits.dim() != 2 or logits.shape[0] != rows:
        raise MismatchError(
            f"{where} gives {tuple(logits.shape)} for {rows} samples, but logits must be (B, K). Use a classifier whose"
            " first output is one row of class scores per sample."
        )
    if logits.shape[1] != classes:
        raise MismatchError(
            f"{where} gives {logits.shape[1]} classes, the data has {classes}. Use a teacher of the same classes in the"
            " same order."
        )


def in_pieces(
    run: Callable[[Tensor], Sequence[Tensor]], inputs: Tensor, *, least: int = 1, most: int | None = None
) -> tuple[Tensor, ...]:
    """Feed a network that takes batches of certain sizes only; a last piece is padded by repeating its last sample.

    Args:
        run: a batch in, tensors out, all with the batch as their first dimension.
        inputs: shape (B, C, H, W).
        least: smallest batch that it takes.
        most: largest; None for any. The same as `least` for a fixed size.

    Returns:
        what `run` gives, for all of the batch.
    """
    found = []
    for piece in torch.split(inputs, most or max(1, len(inputs))):
        missing = max(0, least - len(piece))
        outputs = run(torch.cat([piece, piece[-1:].expand(missing, -1, -1, -1)]) if missing else piece)
        found.append([output[: len(piece)] for output in outputs])
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _shown(shape: Sequence[object]) -> str:
    return f"({', '.join(str(dimension) for dimension in shape)})"
