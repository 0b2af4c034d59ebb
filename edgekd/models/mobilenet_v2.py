"""MobileNetV2: inverted residuals and depthwise convolutions, by width multiplier."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, cast

from pydantic import Field
from torch import Tensor, nn

from edgekd import spec
from edgekd.models._base import ModelFactory
from edgekd.models._blocks import conv_bn, divisible, initialise

__all__ = ["MobileNetV2"]

# expansion, channels, blocks, stride of each stage: table 2 of the paper
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(ModelFactory):
    """MobileNetV2 by width multiplier.

    Parameters carry the names used by published weights (`features.1.conv.0.0`, `classifier.1`).

    Taps: `features.0` ... `features.18` (the last is the 1x1 convolution before the pool), `avgpool`.

    Reference: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
    2018, arXiv:1801.04381, table 2.
    """

    class Options(spec.Options):
        """Options of `mobilenet_v2`."""

        width: float = Field(1.0, gt=0.0, description="channel multiplier")
        stem_stride: Literal[1, 2] = Field(2, description="1 keeps small images (32x32) large enough")
        dropout: float = Field(0.0, ge=0.0, lt=1.0, description="before the classifier, in training")

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """A freshly initialised MobileNetV2; see `ModelFactory.build`."""
        options = cast(MobileNetV2.Options, self.options)
        width = divisible(32 * options.width)
        features: list[nn.Module] = [_conv(input_shape[0], width, 3, stride=options.stem_stride)]
        for expansion, channels, blocks, first_stride in _STAGES:
            outputs = divisible(channels * options.width)
            for index in range(blocks):
                stride = first_stride if index == 0 else 1
                features.append(_InvertedResidual(width, outputs, stride=stride, expansion=expansion))
                width = outputs
        last = divisible(1280 * max(1.0, options.width))
        features.append(_conv(width, last, 1))
        # dropout of probability 0 would still be an operator of the exported graph
        dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        model = nn.Sequential(
            OrderedDict(
                features=nn.Sequential(*features),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                classifier=nn.Sequential(dropout, nn.Linear(last, classes)),
            )
        )
        initialise(model)
        return model


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [_conv(inputs, hidden, 1)] if expansion > 1 else []
        layers.append(_conv(hidden, hidden, 3, stride=stride, groups=hidden))
        layers.extend(conv_bn(hidden, outputs, 1))  # linear: no activation after the projection
        self.conv = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) to (B, outputs, H / stride, W / stride)."""
        out: Tensor = self.conv(inputs)
        return out + inputs if self.has_shortcut else out


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_bn(inputs, outputs, kernel, stride=stride, groups=groups), nn.ReLU6())
