"""A pair of CIFAR-style residual networks and the images they see: plain torch, without edgekd.

Every way of training imports this file, those in another tool's environment too, so all of them train the same
networks from the same weights on the same pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["MEAN", "PAD", "SIZE", "STD", "TAU", "Work", "forward_flops", "labels", "pixels", "resnet"]

SIZE = 32
PAD = 4
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
TAU = 4.0
HARD = 0.1
"""Weight of the labels; the teacher has the rest."""


@dataclass(frozen=True)
class Work:
    """What every way trains.

    Args:
        batch: images of a step.
        steps: of a round, which is one epoch.
        rounds: that are asked for, those that do not count included.
        views: after so many epochs order and augmentation repeat; what a cache has to hold.
        teacher, student: depths of the two networks, 6 n + 2.
        classes: K.
        seed: of weights and images.
        threads: of the processor.
        lr, momentum, weight_decay: of SGD with Nesterov's momentum.
    """

    batch: int = 64
    steps: int = 8
    rounds: int = 22
    views: int = 2
    teacher: int = 32
    student: int = 8
    classes: int = 10
    seed: int = 0
    threads: int = 1
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4

    @property
    def images(self) -> int:
        """Of an epoch: no batch is left unfilled."""
        return self.batch * self.steps

    def text(self) -> str:
        """As an argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Work:
        """What `text` gave."""
        return cls(**json.loads(text))


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        found: Tensor = F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))
        return found


def resnet(depth: int, classes: int, *, seed: int, widths: Sequence[int] = (16, 32, 64)) -> nn.Sequential:
    """The CIFAR residual network of a depth 6 n + 2, with projections where the shape changes.

    Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016, arXiv:1512.03385, section 4.2.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6 n + 2, at least 8, got {depth}")
    torch.manual_seed(seed)
    stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
    blocks: list[nn.Module] = []
    channels = widths[0]
    for stage, width in enumerate(widths):
        for number in range((depth - 2) // 6):
            blocks.append(_Block(channels, width, 2 if stage and not number else 1))
            channels = width
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def pixels(count: int, *, seed: int) -> Tensor:
    """Noise, uint8, shape (count, 3, SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def labels(count: int, classes: int) -> Tensor:
    """Every class in turn, int64, shape (count,)."""
    return torch.arange(count) % classes


def forward_flops(network: nn.Module, size: int = SIZE) -> int:
    """Floating-point operations of one image's forward pass; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())
