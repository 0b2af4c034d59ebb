"""SmoothQuant: equation 4 by hand, and the function that stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd._preparing import folded
from edgekd.calibration.minmax import MinMax
from edgekd.catalog import CATALOGS
from edgekd.corrections._base import Context
from edgekd.corrections.smooth_quant import SmoothQuant, smoothing
from edgekd.errors import DataError
from edgekd.spec import Options

X86 = CATALOGS["targets"].load("onnxruntime_x86").member.numerics
WIDTH = 16


class Block(nn.Module):
    """A transformer block of one head over tokens (B, T, WIDTH), with outliers in three channels, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.wide, self.narrow = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.head = nn.Linear(WIDTH, 5)
        with torch.no_grad():
            for norm in (self.norm1, self.norm2):
                norm.weight[[1, 5, 9]] = 60.0
                norm.bias.normal_()
            for layer in (self.query, self.key, self.value, self.wide):
                layer.weight[:, [1, 5, 9]] /= 60.0  # training makes up for the outliers it made

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.out(F.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y)))
        x = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 7, WIDTH, generator=torch.Generator().manual_seed(seed))


def block() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Block().eval()


def smooth(network: nn.Module, alpha: float = 0.5, data: Tensor | None = None) -> GraphModule:
    data = tokens(32) if data is None else data
    graph = folded(network, data[:4])
    SmoothQuant(SmoothQuant.Options(alpha=alpha)).apply(graph, Context(lambda: data.split(8), X86, False))
    return graph


def parameter(graph: GraphModule, name: str) -> Tensor:
    return graph.get_parameter(f"model.{name}").detach()


def test_factors_are_those_of_equation_4() -> None:
    activations, weights = torch.tensor([16.0, 1.0, 0.0, 2.0]), torch.tensor([1.0, 4.0, 3.0, 0.0])
    assert smoothing(activations, weights, alpha=0.5).tolist() == pytest.approx([4.0, 0.5, 1.0, 1.0])
    # all of it to the weights, and none
    assert smoothing(activations, weights, alpha=1.0)[:2].tolist() == pytest.approx([16.0, 1.0])
    assert smoothing(activations, weights, alpha=0.0)[:2].tolist() == pytest.approx([1.0, 0.25])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_function_stays_as_it_is(alpha: float) -> None:
    network = block()
    graph = smooth(network, alpha)
    with torch.no_grad():
        assert quantize.sqnr_db(network(tokens(16, seed=3)), graph(tokens(16, seed=3))[0]) > 100


def test_normalisation_is_divided_and_its_readers_are_multiplied_by_the_same_factor() -> None:
    network = block()
    graph = smooth(network)
    factor = network.norm1.weight.detach() / parameter(graph, "norm1.weight")  # type: ignore[union-attr, operator]
    torch.testing.assert_close(network.norm1.bias.detach() / factor, parameter(graph, "norm1.bias"))  # type: ignore[union-attr, operator]
    for name in ("query", "key", "value"):
        torch.testing.assert_close(getattr(network, name).weight.detach() * factor, parameter(graph, f"{name}.weight"))
        assert torch.equal(parameter(graph, f"{name}.bias"), getattr(network, name).bias)
    # the factor by the formula: largest normalised value, largest weight of the three readers
    with torch.no_grad():
        largest = network.norm1(tokens(32)).abs().amax((0, 1))  # type: ignore[operator]
    weights = torch.stack([getattr(network, name).weight.abs().amax(0) for name in ("query", "key", "value")]).amax(0)
    torch.testing.assert_close(factor, (largest / weights).sqrt())


def test_channels_of_the_activations_become_alike_with_half_of_it_each() -> None:
    def spread(graph: GraphModule) -> float:
        weight = parameter(graph, "norm2.weight")
        return float(weight.abs().max() / weight.abs().median())

    assert spread(smooth(block())) < spread(folded(block(), tokens(4))) / 8


def test_int8_gains_decibels_where_there_are_outliers() -> None:
    settings: dict[str, Any] = {"numerics": X86, "calibrator": MinMax(Options()), "reduce_range": False}
    done = quantize.post_training(
        block(),
        tokens(4),
        lambda: tokens(64).split(16),
        corrections=[SmoothQuant(SmoothQuant.Options(alpha=0.5))],
        **settings,
    )
    (line,) = done.corrections
    assert line.float_db > 100
    assert line.after_db > line.before_db + 3


class _Reads(nn.Module):
    """A layer normalisation with something beside fully connected layers behind it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=kind != "nothing to fold into")
        self.fc, self.kind = nn.Linear(WIDTH, 5), kind
        if kind != "nothing to fold into":
            nn.init.uniform_(self.norm.weight, 0.1, 10.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.kind == "a second reader":
            return (self.fc(y) + y[..., :5]).mean(1)  # type: ignore[no-any-return]
        if self.kind == "the same weights twice":
            return (self.fc(y) + self.fc(x)).mean(1)  # type: ignore[no-any-return]
        if self.kind == "a function between":
            return self.fc(F.gelu(y)).mean(1)  # type: ignore[no-any-return]
        return self.fc(y).mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "kind", ["a second reader", "the same weights twice", "a function between", "nothing to fold into"]
)
def test_normalisation_is_left_alone_when_the_function_would_change(kind: str) -> None:
    network = _Reads(kind).eval()
    graph = smooth(network)
    assert torch.equal(parameter(graph, "fc.weight"), network.fc.weight)
    with torch.no_grad():
        assert quantize.sqnr_db(network(tokens(8)), graph(tokens(8))[0]) > 100


def test_tap_keeps_its_values() -> None:
    network = block()
    graph = folded(network, tokens(4), ["norm1"])
    SmoothQuant(SmoothQuant.Options()).apply(graph, Context(lambda: tokens(32).split(8), X86, False))
    with torch.no_grad():
        assert quantize.sqnr_db(network.norm1(tokens(8)), graph(tokens(8))[1]) > 100  # type: ignore[operator]


def test_no_data_is_refused() -> None:
    graph = folded(block(), tokens(4))
    with pytest.raises(DataError, match="smooth_quant saw no data"):
        SmoothQuant(SmoothQuant.Options()).apply(graph, Context(list, X86, False))
