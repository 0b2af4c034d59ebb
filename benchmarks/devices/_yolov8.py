"""The detector that Jetson latencies are published for, rebuilt from its description: strides, widths, repeats.

Only its shapes matter here. Its counts are held against the published ones: 3.2, 11.2 and 25.9 million parameters and
8.7, 28.6 and 78.9 GFLOP (two a multiply-accumulate) at 640 x 640 for n, s and m.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["yolov8"]

_CLASSES, _BINS = 80, 16
_SCALES = {"n": (1 / 3, 0.25, 1024), "s": (1 / 3, 0.5, 1024), "m": (2 / 3, 0.75, 768)}
"""Repeats and widths as shares of those of the largest, and its most channels."""


class _Conv(nn.Module):
    """Convolution, normalisation, SiLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y * torch.sigmoid(y)


class _Split(nn.Module):
    """Half of the channels goes through residual pairs; every step is kept and joined."""

    def __init__(self, inputs: int, outputs: int, repeats: int, add: bool) -> None:
        super().__init__()
        self.half, self.add = outputs // 2, add
        self.enter = _Conv(inputs, outputs)
        self.leave = _Conv((2 + repeats) * self.half, outputs)
        self.pairs = nn.ModuleList(
            nn.Sequential(_Conv(self.half, self.half, 3), _Conv(self.half, self.half, 3)) for _ in range(repeats)
        )

    def forward(self, x: Tensor) -> Tensor:
        steps = list(self.enter(x).split(self.half, 1))
        for pair in self.pairs:
            steps.append(steps[-1] + pair(steps[-1]) if self.add else pair(steps[-1]))
        return self.leave(torch.cat(steps, 1))


class _Pooled(nn.Module):
    """Three maxima over 5 x 5, one behind the other, beside the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = _Conv(channels, channels // 2), _Conv(channels * 2, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = [self.enter(x)]
        for _ in range(3):
            steps.append(self.pool(steps[-1]))
        return self.leave(torch.cat(steps, 1))


class _Head(nn.Module):
    """Boxes and classes at three strides, boxes as distributions over bins."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        box, kind = max(16, channels[0] // 4, 4 * _BINS), max(channels[0], min(_CLASSES, 100))
        self.boxes = nn.ModuleList(_branch(one, box, 4 * _BINS) for one in channels)
        self.kinds = nn.ModuleList(_branch(one, kind, _CLASSES) for one in channels)
        self.mean = nn.Conv2d(_BINS, 1, 1, bias=False)

    def forward(self, levels: list[Tensor]) -> Tensor:
        heads = zip(levels, self.boxes, self.kinds, strict=True)
        rows = [torch.cat((box(x), kind(x)), 1).flatten(2) for x, box, kind in heads]
        joined = torch.cat(rows, 2)
        box, kind = joined.split((4 * _BINS, _CLASSES), 1)
        b, _, anchors = box.shape
        distances = self.mean(box.view(b, 4, _BINS, anchors).transpose(2, 1).softmax(1)).view(b, 4, anchors)
        return torch.cat((distances, kind.sigmoid()), 1)


def _branch(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_Conv(inputs, width, 3), _Conv(width, width, 3), nn.Conv2d(width, outputs, 1))


class _Detector(nn.Module):
    """Backbone down to stride 32, up to 8 and down again, heads at 8, 16 and 32."""

    def __init__(self, depth: float, width: float, most: int) -> None:
        super().__init__()
        a, b, c, d, e = (int(min(one, most) * width) for one in (64, 128, 256, 512, 1024))
        three, six = max(round(3 * depth), 1), max(round(6 * depth), 1)
        self.stem = nn.Sequential(_Conv(3, a, 3, 2), _Conv(a, b, 3, 2), _Split(b, b, three, True))
        self.eight = nn.Sequential(_Conv(b, c, 3, 2), _Split(c, c, six, True))
        self.sixteen = nn.Sequential(_Conv(c, d, 3, 2), _Split(d, d, six, True))
        self.thirty_two = nn.Sequential(_Conv(d, e, 3, 2), _Split(e, e, three, True), _Pooled(e))
        self.up = nn.Upsample(scale_factor=2)
        self.up16, self.up8 = _Split(d + e, d, three, False), _Split(c + d, c, three, False)
        self.down16, self.join16 = _Conv(c, c, 3, 2), _Split(c + d, d, three, False)
        self.down32, self.join32 = _Conv(d, d, 3, 2), _Split(d + e, e, three, False)
        self.head = _Head([c, d, e])

    def forward(self, x: Tensor) -> Tensor:
        eight = self.eight(self.stem(x))
        sixteen = self.sixteen(eight)
        last = self.thirty_two(sixteen)
        middle = self.up16(torch.cat((self.up(last), sixteen), 1))
        fine = self.up8(torch.cat((self.up(middle), eight), 1))
        medium = self.join16(torch.cat((self.down16(fine), middle), 1))
        coarse = self.join32(torch.cat((self.down32(medium), last), 1))
        return self.head([fine, medium, coarse])


def yolov8(scale: str) -> nn.Module:
    """The detector at a scale, "n", "s" or "m", with random weights."""
    return _Detector(*_SCALES[scale])
