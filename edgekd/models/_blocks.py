"""Convolutional building blocks that every int8 target can run without a float island.

Each convolution is followed by its batch normalisation and then by its own ReLU module, so that
quantization folds the three into one operator; shortcuts that change shape are convolutions with batch
normalisation (never padding with zeros, which would stay in float); nothing works in place, so that a tap
keeps the values it saw.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["BasicBlock", "Bottleneck", "conv_bn", "divisible", "initialise", "residual_stage"]


def conv_bn(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias (the normalisation has one), padded to keep H and W at stride 1."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385, figure 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) to (B, planes, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(inputs)))
        out = self.bn2(self.conv2(out))
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        activated: Tensor = self.relu2(out + shortcut)
        return activated


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (arXiv:1512.03385, figure 5 right).

    The stride sits on the 3x3 convolution, as in the weights that are published for ResNet-50 today.
    """

    expansion = 4

    def __init__(self, inputs: int, planes: int, *, stride: int = 1) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 * planes, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(inputs)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        activated: Tensor = self.relu3(out + shortcut)
        return activated


def residual_stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, *, planes: int, blocks: int, stride: int
) -> nn.Sequential:
    """`blocks` residual blocks, the first of which changes the width and the stride."""
    first = block(inputs, planes, stride=stride)
    rest = [block(planes * block.expansion, planes) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def divisible(channels: float, *, by: int = 8) -> int:
    """The nearest multiple of `by`, at least `by`, and never more than 10 % below `channels`.

    Integer kernels work on groups of 8 channels; a remainder costs as much as a full group.

    >>> divisible(33), divisible(4), divisible(13)
    (32, 8, 16)
    """
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def initialise(model: nn.Module, *, zero_init_residual: bool = False) -> None:
    """Draw fresh weights in place: Kaiming normal for convolutions, small normal for the classifier.

    Args:
        model: any network of the blocks above.
        zero_init_residual: start every residual branch at zero (Goyal et al. 2017, arXiv:1706.02677,
            section 5.1), so that the network starts as its shortcuts.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if zero_init_residual:
        for module in model.modules():
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return conv_bn(inputs, outputs, 1, stride=stride)
