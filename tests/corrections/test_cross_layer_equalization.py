"""Cross-layer equalization: equation 11 by hand, what may stand between two layers, and what must not move."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from odd_networks import images, odd_network
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd._preparing import folded
from edgekd.catalog import CATALOGS
from edgekd.corrections._base import Context
from edgekd.corrections._chains import chains
from edgekd.corrections._layers import layers
from edgekd.corrections.cross_layer_equalization import CrossLayerEqualization, equalizing
from edgekd.errors import DataError
from edgekd.quantize import sqnr_db

X86 = CATALOGS["targets"].load("onnxruntime_x86").member.numerics


def context(data: Tensor | None = None) -> Context:
    data = images(64, seed=2) if data is None else data
    return Context(lambda: data.split(16), X86, False)


def equalized(network: nn.Module, *, data: Tensor | None = None, sweeps: int = 20) -> GraphModule:
    """A network's folded graph behind equalization, which must compute the same."""
    data = images(64, seed=2) if data is None else data
    network = network.eval()
    graph = folded(network, data[:4])
    CrossLayerEqualization(CrossLayerEqualization.Options(sweeps=sweeps)).apply(graph, context(data))
    with torch.no_grad():
        assert sqnr_db(network(data), graph(data)[0]) > 100
    return graph


def weight(graph: GraphModule, name: str) -> Tensor:
    return graph.get_parameter(f"model.{name}").detach()


def uneven(network: nn.Module, seed: int = 0) -> nn.Module:
    """Output channels scaled by up to a hundred, so that there is something to equalize."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in network.modules():
            if isinstance(one, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                one.weight.mul_(
                    10 ** (2 * torch.rand(len(one.weight), generator=generator)).view(-1, *[1] * (one.weight.ndim - 1))
                )
    return network


# numbers


def test_factors_of_two_layers_are_those_of_equation_11() -> None:
    # s = sqrt(r1 r2) / r2: 4 / 2, 6 / 12, and 1 where one of them is dead
    (factor,) = equalizing([torch.tensor([8.0, 3.0, 0.0]), torch.tensor([2.0, 12.0, 5.0])])
    assert factor.tolist() == pytest.approx([2.0, 0.5, 1.0])


def test_factors_of_three_layers_make_all_the_geometric_mean() -> None:
    ranges = [8.0, 1.0, 27.0]  # the cube root of 216 is 6
    first, second = equalizing([torch.tensor([value]) for value in ranges])
    assert float(first) == pytest.approx(8 / 6)
    assert float(second) == pytest.approx(8 * 1 / 36)
    assert [8 / float(first), 1 * float(first) / float(second), 27 * float(second)] == pytest.approx([6.0, 6.0, 6.0])


def test_weights_and_bias_become_those_worked_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1), nn.Flatten())
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([8.0, -3.0]).view(2, 1, 1, 1))  # type: ignore[operator, union-attr]
        network[0].bias.copy_(torch.tensor([1.0, 2.0]))  # type: ignore[operator, union-attr]
        network[2].weight.copy_(torch.tensor([-2.0, 12.0]).view(1, 2, 1, 1))  # type: ignore[operator, union-attr]
    graph = equalized(network, data=torch.randn(8, 1, 2, 2))
    assert weight(graph, "0.weight").flatten().tolist() == pytest.approx([4.0, -6.0])
    assert weight(graph, "0.bias").tolist() == pytest.approx([0.5, 4.0])
    assert weight(graph, "2.weight").flatten().tolist() == pytest.approx([-4.0, 6.0])


# chains


class _Row(nn.Module):
    """Convolution, something, convolution."""

    def __init__(self, between: Callable[[Tensor], Tensor], second: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = second or nn.Conv2d(8, 6, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x))).flatten(1)  # type: ignore[no-any-return]


EQUIVARIANT = {
    "nothing": lambda x: x,
    "ReLU": F.relu,
    "max-pool": lambda x: F.max_pool2d(F.relu(x), 2),
    "average pool with padding": lambda x: F.avg_pool2d(x, 3, padding=1),
    "global pool and two ReLUs": lambda x: F.relu(F.adaptive_avg_pool2d(F.relu(x), 4)),
    "clamp from 0": lambda x: x.clamp(min=0),
    "ReLU6 that nothing reaches": lambda x: F.hardtanh(x, 0.0, 1e6),
}
NOT_EQUIVARIANT = {
    "sigmoid": torch.sigmoid,
    "hard swish": F.hardswish,
    "an offset": lambda x: x + 1.0,
    "a clamp with two sides": lambda x: x.clamp(-1.0, 1.0),
    "a second reader": lambda x: F.relu(x) + x,
}


@pytest.mark.parametrize("between", EQUIVARIANT)
def test_ranges_of_a_pair_are_equal_when_what_stands_between_lets_factors_through(between: str) -> None:
    graph = equalized(uneven(_Row(EQUIVARIANT[between])))
    first, second = layers(graph)
    torch.testing.assert_close(first.output_magnitudes(), second.input_magnitudes(), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("between", NOT_EQUIVARIANT)
def test_nothing_changes_when_what_stands_between_would_change_the_function(between: str) -> None:
    network = uneven(_Row(NOT_EQUIVARIANT[between]))
    graph = equalized(network)
    assert torch.equal(weight(graph, "first.weight"), network.first.weight)  # type: ignore[arg-type]


def test_grouped_convolution_is_scaled_by_its_own_inputs() -> None:
    graph = equalized(uneven(_Row(F.relu, nn.Conv2d(8, 4, 3, groups=2))))
    first, second = layers(graph)
    torch.testing.assert_close(first.output_magnitudes(), second.input_magnitudes(), rtol=1e-3, atol=0.0)


def test_three_layers_around_a_depthwise_convolution_get_the_same_ranges() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()
    )
    graph = equalized(uneven(network), sweeps=1)
    assert [[link.second.depthwise for link in chain] for chain in chains(graph)] == [[True, False]]
    first, depthwise, last = layers(graph)
    found = [first.output_magnitudes(), depthwise.output_magnitudes(), last.input_magnitudes()]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=0.0)
    torch.testing.assert_close(found[1], found[2], rtol=1e-3, atol=0.0)


def test_fully_connected_layers_pair_up_and_flattening_does_only_from_one_position() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )
    assert len(chains(equalized(uneven(network)))) == 2
    spread = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    assert chains(equalized(uneven(spread))) == []


def test_linear_layers_on_maps_are_not_paired_with_convolutions() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 14, 3), nn.Linear(14, 5)  # 14 channels, and 14 columns

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv(x))).flatten(1)  # type: ignore[no-any-return]

    assert chains(equalized(uneven(Mixed()))) == []


@pytest.mark.parametrize("name", ["SharedConvolution", "SharedConvolutionAndNorm", "SharedConvolutionTwoNorms"])
def test_weights_that_are_read_twice_are_left_alone(name: str) -> None:
    network = odd_network(name)
    graph = equalized(network)
    assert all(len({id(link.first.weight), id(link.second.weight)}) == 2 for chain in chains(graph) for link in chain)


@pytest.mark.parametrize("name", ["InPlace", "Grouped", "OneDimensional", "Branches", "DeadChannels", "LinearOnly"])
def test_function_stays_however_a_network_is_written(name: str) -> None:
    equalized(odd_network(name))


def test_tap_keeps_its_values() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()).eval()
    graph = folded(network, images(4), ["0"])
    CrossLayerEqualization(CrossLayerEqualization.Options()).apply(graph, context())
    with torch.no_grad():
        assert sqnr_db(network[0](images(8)), graph(images(8))[1]) > 100


# ReLU6


def relu6_row(peaks: list[float]) -> nn.Module:
    """One input of ones goes through a ReLU6 with these peaks, then to one output."""
    network = nn.Sequential(
        nn.Conv2d(1, len(peaks), 1, bias=False), nn.ReLU6(), nn.Conv2d(len(peaks), 1, 1), nn.Flatten()
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor(peaks).view(-1, 1, 1, 1))  # type: ignore[operator, union-attr]
        network[2].weight.fill_(1.0)  # type: ignore[operator, union-attr]
    return network


def test_channel_at_the_bound_of_relu6_keeps_its_scale_and_others_stay_below_it() -> None:
    # ranges over 1: without the bound the factors were sqrt of the first layer's weights
    graph = equalized(relu6_row([9.0, 4.0, 0.25, 0.01]), data=torch.ones(4, 1, 2, 2))
    found = weight(graph, "0.weight").flatten()
    assert float(found[0]) == 9.0  # cut off at 6 already
    assert float(found[1]) == pytest.approx(2.0)
    assert float(found[2]) == pytest.approx(0.5)
    assert float(found[3]) == pytest.approx(0.1)


def test_channel_is_scaled_up_to_the_headroom_under_the_bound() -> None:
    network = relu6_row([0.5])
    with torch.no_grad():
        network[2].weight.fill_(5000.0)  # type: ignore[operator, index, union-attr]
    graph = equalized(network, data=torch.ones(4, 1, 2, 2))
    # equal ranges would be 50, cut off at 6; it may reach 6 / 1.25
    assert float(weight(graph, "0.weight")) == pytest.approx(4.8, rel=1e-4)
    assert float(weight(graph, "2.weight")) == pytest.approx(5000 * 0.5 / 4.8, rel=1e-4)


def test_relu6_without_data_is_refused() -> None:
    graph = folded(relu6_row([1.0, 2.0]).eval(), torch.ones(2, 1, 2, 2))
    empty = dataclasses.replace(context(), batches=list)
    with pytest.raises(DataError, match="needs some because of ReLU6"):
        CrossLayerEqualization(CrossLayerEqualization.Options()).apply(graph, empty)


def test_relu_needs_no_data() -> None:
    graph = folded(uneven(_Row(F.relu)).eval(), images(4))
    CrossLayerEqualization(CrossLayerEqualization.Options()).apply(graph, dataclasses.replace(context(), batches=list))
    first, second = layers(graph)
    torch.testing.assert_close(first.output_magnitudes(), second.input_magnitudes(), rtol=1e-3, atol=0.0)


def test_long_row_converges() -> None:
    network = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(5)])
    graph = equalized(uneven(network), data=torch.randn(32, 6, generator=torch.Generator().manual_seed(0)))
    found = layers(graph)
    for first, second in itertools.pairwise(found):
        ratio = (first.output_magnitudes() / second.input_magnitudes()).log().abs().max()
        assert float(ratio) < math.log(1.05)
