from __future__ import annotations

import torch
from torch import nn

from edgekd.models.mobilenet_v2 import MobileNetV2


def build(classes: int = 1000, **options: object) -> nn.Module:
    return MobileNetV2(MobileNetV2.Options(**options)).build(classes, (3, 32, 32))


def test_parameters_equal_the_published_network_when_width_1():
    model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_504_872
    assert len(model.state_dict()) == 314
    names = {"features.0.0.weight", "features.1.conv.1.weight", "features.2.conv.3.bias", "features.18.1.running_mean"}
    assert names | {"classifier.1.weight"} <= set(model.state_dict())


def test_channels_are_multiples_of_8_when_narrow():
    convolutions = [module for module in build(width=0.35).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 52
    assert {module.out_channels % 8 for module in convolutions} == {0}
    assert convolutions[-1].out_channels == 1280  # the paper keeps the last layer wide


def test_map_is_twice_as_large_when_stem_stride_is_1():
    sizes = [build(10, stem_stride=stride).eval().features(torch.randn(1, 3, 64, 64)).shape[-1] for stride in (2, 1)]
    assert sizes == [2, 4]


def test_shortcuts_are_ten_as_in_the_paper():
    assert sum(getattr(module, "has_shortcut", False) for module in build().modules()) == 10
