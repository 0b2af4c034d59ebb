"""Wide residual networks by depth and width (WRN-16-2, WRN-40-2), in the order that int8 can fuse."""

from __future__ import annotations

from collections import OrderedDict
from typing import Self, cast

from pydantic import Field, model_validator
from torch import nn

from edgekd import spec
from edgekd.models._base import ModelFactory
from edgekd.models._blocks import BasicBlock, divisible, initialise, residual_stage

__all__ = ["WideResNet"]


class WideResNet(ModelFactory):
    """WRN-depth-width with the activation after each convolution.

    The paper's blocks normalise *before* they convolve. At the start of such a block the normalisation
    follows an addition: no convolution is there to fold it into, so it stays a float operator between two
    int8 ones, and every block leaves int8 and comes back. These networks keep the depth, the widths and the
    parameter count of the family, and order each block as convolution, normalisation, ReLU, which folds
    completely. Weights of pre-activation networks therefore do not fit.

    Taps: `relu`, `layer1` ... `layer3`, `avgpool`, `fc`.

    Reference: Zagoruyko, Komodakis, "Wide Residual Networks", 2016, arXiv:1605.07146, table 1.
    """

    class Options(spec.Options):
        """Options of `wrn`."""

        depth: int = Field(16, description="6n+4: 10, 16, 22, 28, 40, ...")
        width: float = Field(2.0, gt=0.0, description="channel multiplier: 2 in WRN-40-2")
        zero_init_residual: bool = Field(False, description="start each residual branch at zero")

        @model_validator(mode="after")
        def _depth_exists(self) -> Self:
            if self.depth < 10 or (self.depth - 4) % 6:
                raise ValueError("depth must be 6n+4 (10, 16, 22, 28, 34, 40, ...)")
            return self

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """A freshly initialised wide ResNet; see `ModelFactory.build`."""
        options = cast(WideResNet.Options, self.options)
        blocks = (options.depth - 4) // 6
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu=nn.ReLU()
        )
        inputs = 16
        for number, base in enumerate((16, 32, 64), start=1):
            planes = divisible(base * options.width)
            stride = 1 if number == 1 else 2
            layers[f"layer{number}"] = residual_stage(BasicBlock, inputs, planes=planes, blocks=blocks, stride=stride)
            inputs = planes
        layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(inputs, classes)
        model = nn.Sequential(layers)
        initialise(model, zero_init_residual=options.zero_init_residual)
        return model
