"""Small networks in which one thing is bad for int8 on purpose, with inputs on which float answers are right.

All are chains of 1x1 convolutions over 8 channels and a linear layer; `BAD` says which layers must be float.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.catalog import CATALOGS
from edgekd.targets._base import Numerics

CHANNELS, CLASSES, SIZE = 8, 5, 4
X86 = "onnxruntime_x86"
BAD: dict[str, list[str]] = {
    "fine": [],
    "bad_weights": ["b"],
    "bad_range": ["a", "b"],
    "bad_range_for_float": ["a"],
    "bad_input": ["a"],
}


class Chain(nn.Module):
    """Convolutions a, b, c with ReLUs, and a head; `between` stands behind a."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(3))
        self.head = nn.Linear(CHANNELS, CLASSES)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(self.between(self.a(x))))
        logits: Tensor = self.head(torch.relu(self.c(x)).mean((2, 3)))
        return logits


def network(name: str) -> Chain:
    """One of `BAD`, the same on every call."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Chain(torch.sin if name == "bad_range_for_float" else torch.relu)
    with torch.no_grad():
        for layer in (model.a, model.b, model.c, model.head):
            layer.weight.mul_(3.0)
        if name == "bad_weights":
            # channel 0 is never on, so its huge weights change no answer; they make the grid of the others coarse
            model.a.weight[0], model.a.bias[0] = 0.0, -1.0
            model.b.weight[:, 0] = 2000.0
        if name in ("bad_range", "bad_range_for_float"):
            # channel 0 is huge and constant, and nobody listens to it
            model.a.weight[0], model.a.bias[0] = 0.0, 3000.0
            model.b.weight[:, 0] = 0.0
        if name == "bad_input":
            model.a.weight[:, 0] = 0.0
    return model.eval()


@cache
def samples(name: str, count: int = 64) -> tuple[Tensor, Tensor]:
    """Inputs that the float network is sure about, and its answers."""
    values = torch.randn(8 * count, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    if name == "bad_input":
        values[:, 0] = 3000.0
    with torch.no_grad():
        logits = network(name)(values)
    best = logits.topk(2).values
    sure = (best[:, 0] - best[:, 1]).argsort(descending=True)[:count].sort().values
    return values[sure], logits[sure].argmax(1)


def numerics(target: str = X86) -> Numerics:
    found: Numerics = CATALOGS["targets"].load(target).member.numerics
    return found


def prepared(model: nn.Module, inputs: Tensor, target: str = X86, *, float_layers: tuple[str, ...] = ()) -> GraphModule:
    """Prepared and calibrated by extremes, so that a bad range is not clipped away."""
    member = CATALOGS["calibration"].load("minmax").member
    graph = quantize.prepare(
        model,
        inputs[:4],
        numerics=numerics(target),
        calibrator=member(member.Options()),
        reduce_range=False,
        float_layers=float_layers,
    )
    quantize.calibrate(graph, inputs.split(32))
    return graph


@cache
def _graph(name: str, target: str) -> GraphModule:
    return prepared(network(name), samples(name)[0], target)


def graph(name: str, target: str = X86) -> GraphModule:
    """A network's calibrated graph, one's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return deepcopy(_graph(name, target))
