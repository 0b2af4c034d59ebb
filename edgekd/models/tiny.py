"""A three-stage convolutional network for first steps, examples and tests."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

from pydantic import Field
from torch import nn

from edgekd import spec
from edgekd.models._base import ModelFactory
from edgekd.models._blocks import conv_bn, initialise

__all__ = ["Tiny"]


class Tiny(ModelFactory):
    """Three convolutions with normalisation and ReLU, then pool and classify: about 24 000 parameters.

    Taps: `stem`, `layer1`, `layer2`, `avgpool`.
    """

    class Options(spec.Options):
        """Options of `tiny`."""

        width: int = Field(16, ge=1, description="channels of the first convolution; each next one doubles them")

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """A freshly initialised network; see `ModelFactory.build`."""
        width = cast(Tiny.Options, self.options).width
        model = nn.Sequential(
            OrderedDict(
                stem=nn.Sequential(*conv_bn(input_shape[0], width, 3), nn.ReLU()),
                layer1=nn.Sequential(*conv_bn(width, 2 * width, 3, stride=2), nn.ReLU()),
                layer2=nn.Sequential(*conv_bn(2 * width, 4 * width, 3, stride=2), nn.ReLU()),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(4 * width, classes),
            )
        )
        initialise(model)
        return model
