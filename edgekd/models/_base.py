"""The contract of a model family: typed options in, a torch module out."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

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
