"""Batch normalisation folded away: numbers worked by hand, sharing kept, and what must stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from odd_networks import images, odd_network
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd._folding import fold_batch_norm
from edgekd._normal_form import normalise
from edgekd.quantize import capture, sqnr_db
from edgekd.taps import Tapped


def folded(network: nn.Module, taps: list[str] | None = None, example: Tensor | None = None) -> GraphModule:
    """A network's graph after folding, which must compute the same, taps included."""
    example = images(3) if example is None else example
    graph = capture(network, example, taps or [])
    normalise(graph)
    fold_batch_norm(graph)
    graph.graph.lint()
    with torch.no_grad():
        for wanted, found in zip(Tapped(network.eval(), taps or [])(example), graph(example), strict=True):
            assert sqnr_db(wanted, found) > 100
    return graph


def operators(graph: GraphModule) -> list[str]:
    names = [str(node.target).split(".")[1] for node in graph.graph.nodes if node.op == "call_function"]
    return [
        name for name in names if name in ("conv1d", "conv2d", "conv_transpose2d", "conv3d", "linear", "batch_norm")
    ]


def read(graph: GraphModule) -> list[str]:
    """The parameters that the graph reads."""
    return sorted(str(node.target) for node in graph.graph.nodes if node.op == "get_attr")


def test_folded_weight_and_bias_are_those_worked_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=1.0), nn.Flatten())
    conv, norm = network[0], network[1]
    with torch.no_grad():
        conv.weight.fill_(2.0)
        conv.bias.fill_(0.5)  # type: ignore[union-attr]
        norm.running_mean.fill_(1.0)  # type: ignore[union-attr, operator]
        norm.running_var.fill_(3.0)  # type: ignore[union-attr, operator]
        norm.weight.fill_(4.0)  # type: ignore[union-attr, operator]
        norm.bias.fill_(-1.0)  # type: ignore[union-attr, operator]
    graph = folded(network, example=torch.randn(2, 1, 2, 2))
    # 4 / sqrt(3 + 1) = 2: weight 2 * 2; bias 0.5 * 2 + (-1 - 1 * 2)
    assert read(graph) == ["model.0.bias", "model.0.weight"]
    assert graph.get_parameter("model.0.weight").item() == pytest.approx(4.0)
    assert graph.get_parameter("model.0.bias").item() == pytest.approx(-2.0)


def test_network_s_own_weights_stay_as_they_are() -> None:
    network = odd_network("InPlace")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded(network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_names_are_those_of_the_convolution_and_a_missing_bias_is_added() -> None:
    assert read(folded(odd_network("InPlace"))) == sorted(
        f"model.{owner}.{leaf}" for owner in ("a.0", "b.0", "head.fc") for leaf in ("weight", "bias")
    )


def test_shared_layers_stay_shared() -> None:
    graph = folded(odd_network("SharedConvolutionAndNorm"))
    assert operators(graph) == ["conv2d", "conv2d", "conv2d", "linear"]
    used = [node.args[1:3] for node in graph.graph.nodes if str(node.target) == "aten.conv2d.default"]
    assert used[1] == used[2] != used[0]


def test_shared_convolution_gets_weights_for_each_norm() -> None:
    graph = folded(odd_network("SharedConvolutionTwoNorms"))
    used = [node.args[1] for node in graph.graph.nodes if str(node.target) == "aten.conv2d.default"]
    assert len(set(used)) == 4  # the stem, and one convolution under three norms
    assert len({str(node.target) for node in used}) == 4


def test_plain_use_of_a_shared_convolution_keeps_its_weight() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.norm.running_var.mul_(4.0)  # type: ignore[union-attr]

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + self.conv(F.relu(x))  # type: ignore[no-any-return]

    network = Both()
    graph = folded(network)
    assert torch.equal(graph.get_parameter("model.conv.weight"), network.conv.weight)
    assert len(read(graph)) == 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NormAfterSum", ["conv2d", "conv2d", "conv2d", "linear"]),
        ("PreActivation", ["conv2d", "conv2d", "conv2d", "conv2d", "conv2d", "linear"]),
        ("NormOnInputAndFeatures", ["conv2d", "conv2d", "conv2d", "linear"]),
        ("OneDimensional", ["conv1d", "linear"]),
        ("LinearAndNorm", ["linear", "linear"]),
    ],
)
def test_norm_becomes_part_of_a_layer_or_a_depthwise_convolution(name: str, expected: list[str]) -> None:
    assert operators(folded(odd_network(name))) == expected


def test_weights_of_a_norm_of_its_own_are_exact_on_an_int8_grid() -> None:
    graph = folded(odd_network("NormAfterSum"))
    factor = graph.get_parameter("model.norm.factor").detach()
    assert factor.shape == (8, 1, 1, 1)
    scale = factor.abs() / 127  # one weight a channel: the largest of its channel
    assert torch.allclose(torch.round(factor / scale) * scale, factor, rtol=1e-6)


def test_norm_stays_apart_when_a_tap_reads_before_it_and_a_factor_is_zero() -> None:
    network = odd_network("LinearAndNorm")
    with torch.no_grad():
        network.norm.weight[3] = 0.0  # type: ignore[union-attr, index]
    # without the tap it folds; with it, the values before the norm could not be had back
    assert operators(folded(network)) == ["linear", "linear"]
    assert operators(folded(network, ["first"])) == ["linear", "conv2d", "linear"]


def test_norm_with_statistics_of_the_batch_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    assert operators(folded(network)) == ["conv2d", "batch_norm"]


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten()),
        nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), nn.Flatten()),
    ],
)
def test_norm_behind_layers_that_torchao_folds_is_left_to_it(network: nn.Sequential) -> None:
    assert operators(folded(network))[-1] == "batch_norm"
