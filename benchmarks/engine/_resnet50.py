"""ResNet-50 in plain torch, so that a machine without timm or torchvision has a large teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["resnet50"]

_EXPANSION = 4
_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * _EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * _EXPANSION)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width * _EXPANSION:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width * _EXPANSION, 1, stride, bias=False), nn.BatchNorm2d(width * _EXPANSION)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        found: Tensor = F.relu(self.bn3(self.conv3(hidden)) + self.shortcut(inputs))
        return found


def resnet50(classes: int, *, seed: int) -> nn.Sequential:
    """The network for images of 224 pixels; the stride of a block is on its 3 x 3 convolution.

    Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016, arXiv:1512.03385, table 1.
    """
    torch.manual_seed(seed)
    blocks: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    blocks.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for stage, (width, count) in enumerate(_STAGES):
        for number in range(count):
            blocks.append(_Bottleneck(channels, width, 2 if stage and not number else 1))
            channels = width * _EXPANSION
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
