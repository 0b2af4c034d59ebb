from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgekd.models.resnet import ResNet


def build(classes: int = 1000, channels: int = 3, **options: object) -> nn.Module:
    return ResNet(ResNet.Options(**options)).build(classes, (channels, 32, 32))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "count", "entries"), [(18, 11_689_512, 122), (34, 21_797_672, 218), (50, 25_557_032, 320)]
)
def test_parameters_equal_the_published_networks_when_imagenet(depth, count, entries):
    model = build(depth=depth)
    assert parameters(model) == count
    assert len(model.state_dict()) == entries


def test_names_are_those_of_published_weights_when_imagenet():
    keys = set(build(depth=18).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.1.bn2.bias", "layer2.0.downsample.1.weight", "fc.bias"} <= keys
    assert "layer1.0.downsample.0.weight" not in keys


@pytest.mark.parametrize(("depth", "width", "millions"), [(8, 4, 1.23), (32, 4, 7.43), (20, 1, 0.28), (56, 1, 0.86)])
def test_size_equals_the_published_one_when_cifar(depth, width, millions):
    assert round(parameters(build(100, depth=depth, width=width)) / 1e6, 2) == millions


def test_channels_are_32_64_128_256_when_8x4():
    model = build(depth=8, width=4)
    assert [model.conv1.out_channels, *(model.get_submodule(f"layer{i}.0.conv1").out_channels for i in (1, 2, 3))] == [
        32,
        64,
        128,
        256,
    ]


@pytest.mark.parametrize(
    ("options", "size"), [({"depth": 20}, 8), ({"depth": 18}, 1), ({"depth": 18, "stem": "cifar"}, 4)]
)
def test_last_map_has_the_stride_of_the_stem(options, size):
    model = build(**options).eval()
    body = nn.Sequential(*list(model.children())[:-3])
    assert body(torch.randn(1, 3, 32, 32)).shape[-2:] == (size, size)


def test_residual_branches_start_at_zero_when_asked():
    model = build(depth=50, zero_init_residual=True)
    block = model.layer1[1].eval()
    features = torch.rand(2, 256, 4, 4)
    torch.testing.assert_close(block(features), features)  # ReLU of the shortcut alone


@pytest.mark.parametrize("depth", [7, 19, 2])
def test_depth_is_refused_when_no_family_has_it(depth):
    with pytest.raises(ValidationError, match=r"depth must be 18, 34, 50 or 6n\+2"):
        ResNet.Options(depth=depth)


def test_imagenet_stem_is_refused_when_cifar_depth():
    with pytest.raises(ValidationError, match="stem 'imagenet' needs depth 18, 34 or 50"):
        ResNet.Options(depth=20, stem="imagenet")
