"""Residual networks: the CIFAR family (8, 14, 20, ... 56, 8x4, 32x4) and ResNet-18, 34, 50."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, Self, cast

from pydantic import Field, model_validator
from torch import nn

from edgekd import spec
from edgekd.models._base import ModelFactory
from edgekd.models._blocks import BasicBlock, Bottleneck, divisible, initialise, residual_stage

__all__ = ["ResNet"]

_FOUR_STAGES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(ModelFactory):
    """ResNet by depth and width.

    Depth 18, 34 or 50 gives the four-stage networks; any other depth of the form 6n+2 gives the three-stage
    CIFAR networks. Shortcuts that change shape are 1x1 convolutions, because the parameter-free shortcut of
    the CIFAR networks pads with zeros, which no int8 kernel does. Parameters of depths 18, 34 and 50 carry
    the names used by published weights (`conv1`, `layer1.0.bn1`, `fc`).

    Taps: `relu`, `layer1` ... `layer3` (`layer4`), `avgpool`, `fc`.

    Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385;
    width 4 (resnet8x4, resnet32x4) as in Tian, Krishnan, Isola, "Contrastive Representation Distillation",
    2019, arXiv:1910.10699.
    """

    class Options(spec.Options):
        """Options of `resnet`."""

        depth: int = Field(20, description="18, 34, 50, or 6n+2 for the CIFAR family")
        width: float = Field(1.0, gt=0.0, description="channel multiplier; 4 with depth 8 is resnet8x4")
        stem: Literal["auto", "cifar", "imagenet"] = Field(
            "auto", description="cifar: 3x3 at full size; imagenet: 7x7 stride 2 and max-pool; auto: by depth"
        )
        zero_init_residual: bool = Field(False, description="start each residual branch at zero")

        @model_validator(mode="after")
        def _depth_exists(self) -> Self:
            cifar = self.depth >= 8 and (self.depth - 2) % 6 == 0
            if self.depth not in _FOUR_STAGES and not cifar:
                raise ValueError("depth must be 18, 34, 50 or 6n+2 (8, 14, 20, 26, 32, ...)")
            if self.depth not in _FOUR_STAGES and self.stem == "imagenet":
                raise ValueError("stem 'imagenet' needs depth 18, 34 or 50")
            return self

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """A freshly initialised ResNet; see `ModelFactory.build`."""
        options = cast(ResNet.Options, self.options)
        if options.depth in _FOUR_STAGES:
            layers = _four_stages(options, classes, input_shape[0])
        else:
            layers = _three_stages(options, classes, input_shape[0])
        model = nn.Sequential(layers)
        initialise(model, zero_init_residual=options.zero_init_residual)
        return model


def _three_stages(options: ResNet.Options, classes: int, channels: int) -> OrderedDict[str, nn.Module]:
    blocks = (options.depth - 2) // 6
    # resnet8x4 and resnet32x4 start with 32 channels, half of their first stage; width 1 starts with all 16
    stem = divisible(16 * max(1.0, options.width / 2))
    return _layers(
        nn.Conv2d(channels, stem, 3, padding=1, bias=False),
        stages=[(divisible(planes * options.width), blocks) for planes in (16, 32, 64)],
        block=BasicBlock,
        max_pool=False,
        classes=classes,
    )


def _four_stages(options: ResNet.Options, classes: int, channels: int) -> OrderedDict[str, nn.Module]:
    block, counts = _FOUR_STAGES[options.depth]
    planes = [divisible(value * options.width) for value in (64, 128, 256, 512)]
    large = options.stem != "cifar"
    kernel, stride = (7, 2) if large else (3, 1)
    return _layers(
        nn.Conv2d(channels, planes[0], kernel, stride=stride, padding=kernel // 2, bias=False),
        stages=list(zip(planes, counts, strict=True)),
        block=block,
        max_pool=large,
        classes=classes,
    )


def _layers(
    stem: nn.Conv2d,
    *,
    stages: list[tuple[int, int]],
    block: type[BasicBlock] | type[Bottleneck],
    max_pool: bool,
    classes: int,
) -> OrderedDict[str, nn.Module]:
    width = stem.out_channels
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=stem, bn1=nn.BatchNorm2d(width), relu=nn.ReLU())
    if max_pool:
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    for number, (planes, blocks) in enumerate(stages, start=1):
        stride = 1 if number == 1 else 2
        layers[f"layer{number}"] = residual_stage(block, width, planes=planes, blocks=blocks, stride=stride)
        width = planes * block.expansion
    layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(width, classes)
    return layers
