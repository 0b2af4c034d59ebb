"""The contract of a model family: typed options in, a torch module out."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from edgekd import spec

__all__ = ["ModelFactory"]


class ModelFactory:
    """Builds one network of a family.

    Args:
        options: this family's options.
        argument: what stood after the colon of the model's name ("" if nothing): `timm:NAME` gives NAME.
    """

    Options: ClassVar[type[spec.Options]] = spec.Options
    takes_argument: ClassVar[bool] = False
    # the argument is a file; one that is not absolute starts at the recipe's folder
    takes_file: ClassVar[bool] = False
    # it answers as it is: never trained, without weights of its own, only a teacher
    ready_made: ClassVar[bool] = False
    # building it runs code that the recipe names: it must say allow_user_code
    runs_user_code: ClassVar[bool] = False
    # it is made out of the recipe's teacher, by `derive` instead of `build`
    needs_teacher_network: ClassVar[bool] = False

    def __init__(self, options: spec.Options, argument: str = "") -> None:
        self.options = options
        self.argument = argument

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """A freshly initialised network.

        Args:
            classes: K, the number of logits.
            input_shape: (C, H, W).

        Returns:
            A module from (B, C, H, W) to logits (B, K), with named submodules fit for taps.
        """
        raise NotImplementedError

    def derive(self, teacher: nn.Module, example: Tensor) -> nn.Module:
        """A network made out of the teacher, for a family that `needs_teacher_network`.

        The same teacher gives the same network, and teachers of one structure give networks of one structure: it is
        built again, from a teacher with other weights, whenever weights of its own are loaded into it.

        Args:
            teacher: on the CPU; not changed.
            example: inputs that it takes, shape (1, C, H, W).
        """
        raise NotImplementedError

    def sources(self) -> tuple[Path, ...]:
        """The files whose content decides what a ready-made network answers."""
        return ()
