"""Small networks with the layouts that users really write, for 3x16x16 images and 10 classes.

Each is built by `odd_network(name)` with fixed weights and batch statistics far from their initial values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 16
CLASSES = 10
ODD: dict[str, Callable[[], nn.Module]] = {}

Network = TypeVar("Network", bound=Callable[[], nn.Module])


def odd_network(name: str, *, eps: float = 1e-5, variance: tuple[float, float] = (0.5, 2.0)) -> nn.Module:
    """A network in eval mode, the same on every call.

    Args:
        name: a key of ODD.
        eps: of every batch normalisation.
        variance: bounds of the running variances.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ODD[name]()
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.eps = eps
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.normal_(0, 0.3 * variance[1] ** 0.5)
                    module.running_var.uniform_(*variance)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def _odd(network: Network) -> Network:
    ODD[network.__name__] = network
    return network


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class _Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


class _Blocks(nn.Module):
    """Two convolutions `a` (3 to 8) and `b` (8 to 8) with normalisation, and a head; subclasses connect them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = _conv_bn(3, 8)
        self.b = _conv_bn(8, 8)
        self.head = _Head(8)


# weights and normalisations that are shared, doubled, or stand alone


@_odd
class SharedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(3, 8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = _Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.conv(F.relu(self.conv(x)))))


@_odd
class SharedConvolutionAndNorm(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.b(F.relu(self.a(x)))))))


@_odd
class SharedConvolutionTwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(3, 8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.head = _Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for norm in self.norms:
            x = F.relu(norm(self.conv(x)))
        return self.head(x)


@_odd
class TwoConvolutionsOneNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = _Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.second(F.relu(self.norm(self.first(x)))))))


@_odd
class NormAfterSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = _Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.left(x) + self.right(x))))


@_odd
class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv1 = _conv_bn(8, 8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = _Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv2(F.relu(self.conv1(F.relu(self.norm1(x)))))
        return self.head(F.relu(self.norm2(x + y)))


@_odd
class BiasAndNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=True)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.head = _Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))))


@_odd
class NormOnInputAndFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm0 = nn.BatchNorm2d(3)
        self.conv = _conv_bn(3, 8)
        self.norm1 = nn.BatchNorm1d(8)
        self.head = _Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head.pool(F.relu(self.conv(self.norm0(x)))).flatten(1)
        return self.head.fc(self.norm1(x))


@_odd
class LinearAndNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * SIZE * SIZE, 32, bias=False)
        self.norm = nn.BatchNorm1d(32)
        self.last = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.norm(self.first(x.flatten(1)))))


@_odd
class DeadChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = _Head(8)
        with torch.no_grad():
            self.conv.weight[2] = 0.0
            self.conv.weight[3] *= 1e-6
            self.conv.bias.copy_(torch.tensor([0.1, 0.2, 5.0, -3.0, 0.0, 0.0, 0.1, 0.1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)))


@_odd
class DeadActivation(_Blocks):
    """All of the first ReLU's outputs are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            self.low.bias.fill_(-1e3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.head(F.relu(self.b(F.relu(self.low(x)))) + x)


# kinds of layers


@_odd
class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(3, 8)
        self.grouped = _conv_bn(8, 8, groups=4)
        self.depthwise = _conv_bn(8, 8, groups=8, stride=2)
        self.head = _Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.depthwise(F.relu(self.grouped(F.relu(self.stem(x)))))))


@_odd
class OneDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3 * SIZE, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8 * SIZE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x.flatten(1, 2)))).flatten(1))


@_odd
class LinearOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * SIZE * SIZE, 32)
        self.second = nn.Linear(32, 16, bias=False)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(self.first(x.flatten(1)))))


@_odd
class SamePadding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Conv2d(3, 8, 3, padding="same", dilation=2)
        self.norm = nn.BatchNorm2d(8)
        self.valid = nn.Conv2d(8, 8, 2, padding="valid")
        self.head = _Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.valid(F.relu(self.norm(self.odd(x))))))


@_odd
class Dropouts(_Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.planes, self.values = nn.Dropout2d(0.2), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.planes(F.relu(self.b(F.relu(self.a(x)))))
        return self.head.fc(self.values(self.head.pool(x).flatten(1)))


# ways to write an activation or a pooling


@_odd
class FunctionalRelu6(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu6(self.b(F.relu6(self.a(x)))))


@_odd
class Clamps(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).clamp(min=0)).clamp(0, 3)
        return self.head(self.b(x).clamp_min(0))


@_odd
class InPlace(_Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self.a(x))
        y = self.b(x)
        y += x
        return self.head(self.relu(y))


@_odd
class InPlaceThenReadAgain(_Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.relu(x)
        return self.head(self.b(y) + x)  # x is what the ReLU wrote


@_odd
class Gates(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x))
        weights = torch.sigmoid(F.adaptive_avg_pool2d(self.b(x), 1))
        return self.head(x * weights)


@_odd
class MeanAsPool(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.head.fc(x.mean((2, 3)) + x.mean([-2, -1], keepdim=True).flatten(1))


@_odd
class ReluAfterMaxPool(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.b(F.relu(F.max_pool2d(self.a(x), 2))), 2))


# ways to connect


@_odd
class AddConstant(_Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x))) + self.offset))


@_odd
class AddBroadcast(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.head(F.relu(self.b(x) + F.adaptive_avg_pool2d(x, 1)))


@_odd
class AddItself(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.head(F.relu(self.b(x + x)))


@_odd
class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = _conv_bn(3, 8), _conv_bn(3, 4, 1)
        self.joined = _conv_bn(12, 8)
        self.head = _Head(20)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.left(x)), self.right(x)], 1)
        return self.head(F.relu(torch.cat([x, self.joined(x)], 1)))


@_odd
class ResidualWithoutRelu(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.b(x)
        return self.head(x + self.b(x))


@_odd
class TwoReaders(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(F.relu(self.b(F.relu(x)) + x))


@_odd
class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = _conv_bn(3, 8), _conv_bn(4, 4, groups=4)
        self.head = _Head(8)

    def forward(self, x: Tensor) -> Tensor:
        kept, moved = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([kept, F.relu(self.branch(moved))], 1)
        n, c, h, w = x.shape
        return self.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


# ways to end


@_odd
class LogitsFromPool(_Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.classes(F.relu(self.b(F.relu(self.a(x)))))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


@_odd
class CenteredLogits(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(F.relu(self.b(F.relu(self.a(x)))))
        return logits - logits.mean(1, keepdim=True)


@_odd
class LogProbabilities(_Blocks):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.head(F.relu(self.b(F.relu(self.a(x))))), dim=1)


@_odd
class OneConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


@_odd
class ViewByBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv_bn(3, 8, stride=4)
        self.fc = nn.Linear(8 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.fc(x.view(x.shape[0], -1))
