"""Bias correction: means by hand, both ways, and the mean error of every layer's output gone."""

from __future__ import annotations

import copy
import warnings
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.calibration.minmax import MinMax
from edgekd.catalog import CATALOGS
from edgekd.corrections._base import Context
from edgekd.corrections._layers import layers, watch
from edgekd.corrections.bias_correction import BiasCorrection
from edgekd.errors import DataError
from edgekd.spec import Options

X86 = CATALOGS["targets"].load("onnxruntime_x86").member.numerics
Mode = Literal["one_pass", "sequential"]
MODES: list[Mode] = ["one_pass", "sequential"]


def calibrated(network: nn.Module, data: Tensor) -> tuple[GraphModule, GraphModule]:
    """A calibrated graph, and the same with quantizers off."""
    graph = quantize.prepare(network.eval(), data[:4], numerics=X86, calibrator=MinMax(Options()), reduce_range=False)
    quantize.calibrate(graph, data.split(16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = copy.deepcopy(graph)
    quantize.set_phase(reference, "off")
    return graph, reference


def correct(graph: GraphModule, reference: GraphModule, data: Tensor, mode: Mode, samples: int = 256) -> None:
    context = Context(lambda: data.split(16), X86, False, 0, reference)
    BiasCorrection(BiasCorrection.Options(mode=mode, samples=samples)).apply(graph, context)


def mean_errors(graph: GraphModule, reference: GraphModule, data: Tensor) -> list[float]:
    """Of each layer, the mean error of its output over samples and positions, the largest of any channel."""
    found: list[dict[str, Tensor]] = []
    for one in (graph, reference):
        by_node = {layer.node: layer for layer in layers(one)}
        means: dict[str, Tensor] = {}
        watch(
            one,
            data,
            lambda node, value, by=by_node, into=means: into.update({node.name: by[node].channel_means(value)}),  # type: ignore[misc]
            nodes=list(by_node),
        )
        found.append(means)
    return [float((found[0][name] - found[1][name]).abs().max()) for name in found[1]]


def row() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def images(count: int) -> Tensor:
    # a mean far from 0, without which there is nothing to correct
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(0)) + 1.0


@pytest.mark.parametrize("mode", MODES)
def test_bias_is_the_one_worked_by_hand(mode: Mode) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.ReLU())
    with torch.no_grad():
        # the largest weight is code 127, so a step is a hundredth; 0.104 becomes 0.10
        network[1].weight.copy_(torch.tensor([[1.27, 0.104]]))  # type: ignore[operator, union-attr]
        network[1].bias.fill_(0.5)  # type: ignore[operator, union-attr]
    # 0 and 2.55 are the ends of a grid with 255 steps of a hundredth, and the other values are on it
    data = torch.tensor([[0.0, 2.0], [2.55, 1.0], [1.0, 0.5], [0.45, 0.5]]).view(4, 2, 1, 1)
    graph, reference = calibrated(network, data)
    correct(graph, reference, data, mode)
    # the mean of the second input is 1, its weight lost 0.004
    assert float(graph.get_parameter("model.1.bias").detach()) == pytest.approx(0.504, abs=1e-6)


def test_sequential_leaves_no_mean_error_in_any_layer() -> None:
    data = images(64)
    graph, reference = calibrated(row(), data)
    before = mean_errors(graph, reference, data)
    assert max(before) > 1e-3
    correct(graph, reference, data, "sequential")
    # a corrected layer's error is that of float32, since what runs before it was corrected first
    assert max(mean_errors(graph, reference, data)) < max(before) / 1000


def test_one_pass_takes_the_error_of_the_weights_back() -> None:
    data = images(64)
    graph, reference = calibrated(row(), data)
    first = layers(graph)[0]
    correct(graph, reference, data, "one_pass")
    after = layers(graph)[0]
    assert first.bias is not None
    assert after.bias is not None
    # the first layer's inputs are the same in both, up to their own rounding: corrected, it agrees on the mean
    again, _ = calibrated(row(), data)
    before = mean_errors(again, reference, data)
    assert mean_errors(graph, reference, data)[0] < before[0] / 3
    assert sum(mean_errors(graph, reference, data)) < sum(before) / 2


def test_both_ways_agree_when_activations_are_exact() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU())
    # every input is a code of the grid: 0 to 255
    data = torch.randint(0, 256, (64, 4, 1, 1), generator=torch.Generator().manual_seed(0)).float()
    data[0] = 255.0
    data[1] = 0.0
    biases = []
    for mode in MODES:
        torch.manual_seed(0)
        nn.init.normal_(network[1].weight)  # type: ignore[arg-type, union-attr]
        graph, reference = calibrated(network, data)
        correct(graph, reference, data, mode)
        biases.append(graph.get_parameter("model.1.bias").detach())
    torch.testing.assert_close(biases[0], biases[1], rtol=1e-4, atol=1e-3)


def test_errors_of_weights_that_were_changed_before_count_too() -> None:
    # adaptive rounding leaves codes, which round to themselves: held against the float weights their error is seen
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=True), nn.ReLU())
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.27, 0.104]]))  # type: ignore[operator, union-attr]
        network[1].bias.fill_(0.5)  # type: ignore[operator, union-attr]
    data = torch.tensor([[0.0, 2.0], [2.55, 1.0], [1.0, 0.5], [0.45, 0.5]]).view(4, 2, 1, 1)
    graph, reference = calibrated(network, data)
    with torch.no_grad():
        graph.get_parameter("model.1.weight")[0, 1] = 0.11  # one code up instead of down
    correct(graph, reference, data, "one_pass")
    assert float(graph.get_parameter("model.1.bias").detach()) == pytest.approx(0.5 - 0.006, abs=1e-6)


def test_only_the_samples_asked_for_are_looked_at() -> None:
    data = images(64)
    graph, reference = calibrated(row(), data)
    taken = []

    def batches() -> list[Tensor]:
        parts = list(data.split(16))
        taken.append(len(parts))
        return parts

    few, whole = copy.deepcopy(graph.state_dict()), []
    for samples in (16, 64):
        graph.load_state_dict(few)
        context = Context(batches, X86, False, 0, reference)
        BiasCorrection(BiasCorrection.Options(samples=samples)).apply(graph, context)
        whole.append(graph.get_parameter("model.0.bias").detach().clone())
    assert not torch.equal(whole[0], whole[1])
    graph.load_state_dict(few)
    correct(graph, reference, data[:16], "one_pass")
    assert torch.equal(graph.get_parameter("model.0.bias"), whole[0])


def test_no_data_is_refused() -> None:
    graph, reference = calibrated(row(), images(16))
    with pytest.raises(DataError, match="A correction saw no data"):
        BiasCorrection(BiasCorrection.Options()).apply(graph, Context(list, X86, False, 0, reference))
