"""AdaRound: formulas by hand, its gradient by autograd, and roundings that beat the nearest without moving a scale."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.calibration._base import Grid
from edgekd.calibration._fake_quantize import PerChannelWeightQuantizer
from edgekd.calibration._pair_sums import largest_pair
from edgekd.calibration.minmax import MinMax
from edgekd.catalog import CATALOGS
from edgekd.corrections import _rounding, adaround
from edgekd.corrections._base import Context
from edgekd.corrections._layers import layers, watch
from edgekd.corrections._rounding import Bounds, Problem, Schedule, rectified_sigmoid, regularizer, rounded_up
from edgekd.corrections.adaround import AdaRound, round_weights
from edgekd.errors import DataError
from edgekd.spec import Options

X86 = CATALOGS["targets"].load("onnxruntime_x86").member.numerics
UNBOUNDED = Bounds(-math.inf, math.inf)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# formulas


def test_rectified_sigmoid_is_equation_23() -> None:
    # sigmoid(ln 3) is 3/4: 0.75 * 1.2 - 0.1
    assert rectified_sigmoid(torch.tensor([0.0, math.log(3.0), -20.0, 20.0])).tolist() == pytest.approx(
        [0.5, 0.8, 0, 1]
    )


def test_regularizer_is_equation_24() -> None:
    # h of 0.8: 1 - 0.6^2 and 1 - 0.6^20
    assert float(regularizer(torch.tensor([0.8]), 2.0)) == pytest.approx(0.64)
    assert float(regularizer(torch.tensor([0.8]), 20.0)) == pytest.approx(1 - 0.6**20)
    assert float(regularizer(torch.tensor([0.0, 1.0]), 2.0)) == 0.0


def test_exponent_falls_from_20_to_2_behind_the_warm_up() -> None:
    schedule = Schedule(iterations=100, batch=1, rate=0.1, weight=0.01)
    assert [schedule.beta_at(step) for step in (0, 19)] == [None, None]
    assert [schedule.beta_at(step) for step in (20, 60, 100)] == pytest.approx([20.0, 11.0, 2.0])


def problem(groups: int = 1, bounds: Bounds = UNBOUNDED, seed: int = 0) -> Problem:
    inputs = normal(groups, 200, 6, seed=seed)
    weight = normal(groups, 4, 6, seed=seed + 1)
    scale = torch.full((groups, 4, 1), 0.3)
    bias = normal(groups, 1, 4, seed=seed + 2)
    wanted = (inputs @ weight.transpose(1, 2) + bias).clamp(bounds.low, bounds.high)
    return Problem(inputs, wanted, bias, weight / scale, scale, -8, 7, bounds)


@pytest.mark.parametrize("bounds", [UNBOUNDED, Bounds(0.0, math.inf), Bounds(0.0, 1.0)])
@pytest.mark.parametrize("groups", [1, 3])
def test_gradient_of_the_error_equals_the_one_that_autograd_finds(groups: int, bounds: Bounds) -> None:
    posed = problem(groups, bounds)
    codes = (posed.steps + 0.2 * normal(*posed.steps.shape, seed=9)).requires_grad_()
    rows = slice(None)
    outputs = posed.inputs[:, rows] @ (codes.clamp(-8, 7) * posed.scale).transpose(1, 2) + posed.bias
    error = (outputs.clamp(bounds.low, bounds.high) - posed.wanted[:, rows]).square().sum(2).mean(1).sum()
    error.backward()
    torch.testing.assert_close(posed.slope(rows, codes.detach()), codes.grad)
    assert posed.error(codes.detach()) == pytest.approx(float(error.detach()), rel=1e-5)


def test_rounding_that_cancels_is_found_where_the_nearest_adds_up() -> None:
    # two equal inputs, weights of 0.45 and 0.35 steps: nearest gives 0, the layer gave 0.8 of a step
    inputs = normal(1, 64, 1).expand(1, 64, 2)
    steps = torch.tensor([[[0.45, 0.35]]])
    scale = torch.ones(1, 1, 1)
    posed = Problem(inputs, inputs @ steps.transpose(1, 2), torch.zeros(1, 1, 1), steps, scale, -8, 7, UNBOUNDED)
    up = rounded_up(posed, Schedule(400, 64, 0.02, 0.01), seed=0)
    assert up.flatten().tolist() == [1.0, 0.0]
    # 1 is off by 0.2 where 0 is off by 0.8
    assert posed.error(up) == pytest.approx(posed.error(torch.zeros_like(up)) / 16, rel=1e-3)


def test_nearest_is_kept_when_nothing_better_was_found() -> None:
    posed = problem()
    up = rounded_up(posed, Schedule(iterations=1, batch=1, rate=1e3, weight=0.0), seed=0)  # one wild step
    nearest = posed.steps.round() - posed.steps.floor()
    assert posed.error(posed.steps.floor() + up) <= posed.error(posed.steps.floor() + nearest)


@pytest.mark.parametrize("bounds", [UNBOUNDED, Bounds(0.0, math.inf)])
def test_error_falls_well_below_that_of_the_nearest(bounds: Bounds) -> None:
    # inputs that go together, as a layer's do
    posed = problem(bounds=bounds)
    mixed = posed.inputs @ normal(6, 6, seed=5)
    outputs = (mixed @ (posed.steps * posed.scale).transpose(1, 2) + posed.bias).clamp(bounds.low, bounds.high)
    posed = Problem(mixed, outputs, posed.bias, posed.steps, posed.scale, -8, 7, bounds)
    up = rounded_up(posed, Schedule(600, 64, 0.02, 0.01), seed=0)
    assert posed.error(posed.steps.floor() + up) < 0.7 * posed.error(posed.steps.round())


# weights


def quantizer(grid: Grid) -> PerChannelWeightQuantizer:
    return PerChannelWeightQuantizer(grid, torch.int8, grid.low, grid.high, torch.per_channel_symmetric)


WEIGHTS = {
    "a kernel": lambda: normal(6, 4, 3, 3),
    "channels of one size": lambda: torch.ones(3, 4),
    "a dead channel": lambda: torch.cat([normal(3, 8), torch.zeros(1, 8), normal(1, 8) * 1e-9]),
    "nothing": lambda: torch.zeros(2, 3),
    "channels far apart": lambda: normal(5, 8) * 10.0 ** torch.arange(-4, 1)[:, None],
}


@pytest.mark.parametrize("grid", [Grid(-127, 127, True), Grid(-64, 64, True), Grid(-127, 127, True, half_scales=True)])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("seed", range(4))
def test_quantizer_gives_the_codes_that_were_chosen_and_the_scales_do_not_move(
    kind: str, grid: Grid, seed: int
) -> None:
    weight, one = nn.Parameter(WEIGHTS[kind]()), quantizer(grid)
    one.phase = "frozen"
    scale = one.parameters_of(weight)[0].clone()
    by_channel = scale.view(-1, *[1] * (weight.ndim - 1))
    steps = weight.detach() * by_channel.reciprocal()
    up = torch.randint(0, 2, weight.shape, generator=torch.Generator().manual_seed(seed)).float()
    largest = weight.detach().abs() == weight.detach().abs().flatten(1).amax(1).view(by_channel.shape)
    chosen = torch.where(largest, steps.round(), steps.floor() + up).clamp(grid.low, grid.high)
    round_weights(weight, one, up)
    assert torch.equal(one.parameters_of(weight)[0], scale)
    assert torch.equal((one(weight).detach() * by_channel.reciprocal()).round(), chosen)
    assert float((one(weight) - weight).detach().abs().max()) <= float(scale.max())


def test_learned_scales_are_kept_too() -> None:
    weight, one = nn.Parameter(normal(3, 8)), quantizer(Grid(-127, 127, True))
    one.phase = "frozen"
    one.scale = torch.tensor([0.3, 0.01, 0.001])  # coarse, about right, and one that cuts off
    up = torch.ones_like(weight)
    chosen = ((weight.detach() * one.scale[:, None].reciprocal()).floor() + 1).clamp(-127, 127)
    round_weights(weight, one, up)
    assert torch.equal((one(weight).detach() / one.scale[:, None]).round(), chosen)


# what a layer reads


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(4, 6, 3), (4, 9, 8)),
    "padded, strided, dilated": (nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2), (4, 9, 8)),
    "uneven": (nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 1), dilation=(1, 2)), (4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 6, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "one-dimensional": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 9)),
    "fully connected": (nn.Linear(7, 5), (7,)),
    "on tokens": (nn.Linear(7, 5), (3, 7)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_on_the_windows_gives_values_of_its_output(kind: str) -> None:
    module, shape = LAYERS[kind]
    data = normal(3, *shape)
    graph = quantize.capture(nn.Sequential(module), data)
    (layer,) = layers(graph)
    windows = adaround._windows(layer, data, 20, torch.Generator().manual_seed(0))
    assert len(windows) == 60
    with torch.no_grad():
        whole = module(data)
        if isinstance(module, nn.Linear):
            found, whole = module(windows), whole.flatten(0, -2)
        else:
            convolution = F.conv2d if windows.ndim == 4 else F.conv1d
            found = convolution(windows, module.weight, module.bias, groups=int(module.groups)).flatten(1)  # type: ignore[arg-type, call-overload, operator]
            whole = whole.movedim(1, -1).flatten(0, -2)
    distance = torch.cdist(found.double(), whole.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distance.amin(1).max()) < 1e-4
    # at many places, not one
    assert len(set(distance.argmin(1).tolist())) > min(len(whole), 20) / 2


# the whole correction


def row() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def images(count: int) -> Tensor:
    # neighbouring pixels alike, as in pictures
    return F.avg_pool2d(normal(count, 2, 12, 12), 3, stride=1, padding=1) * 3 + 0.5


def calibrated(network: nn.Module, data: Tensor, **changes: Any) -> tuple[GraphModule, Context]:
    settings: dict[str, Any] = {"numerics": X86, "calibrator": MinMax(Options()), "reduce_range": True} | changes
    graph = quantize.prepare(network, data[:4], **settings)
    quantize.calibrate(graph, data.split(16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = copy.deepcopy(graph)
    quantize.set_phase(reference, "off")
    return graph, Context(lambda: data.split(16), X86, True, 0, reference)


@pytest.mark.parametrize(("reduce_range", "decibels"), [(False, 1.0), (True, 0.5)])
def test_outputs_of_the_network_come_nearer_to_float(reduce_range: bool, decibels: float) -> None:
    network, data = row(), images(64)
    graph, context = calibrated(network, data, reduce_range=reduce_range)
    other = images(128)[64:]
    with torch.no_grad():
        wanted = network(other)
        before = quantize.sqnr_db(wanted, graph(other)[0])
        AdaRound(AdaRound.Options(iterations=400, positions=1024)).apply(graph, context)
        after = quantize.sqnr_db(wanted, graph(other)[0])
    assert after > before + decibels


def test_weights_are_codes_times_scales_and_biases_stay() -> None:
    graph, context = calibrated(row(), images(32), reduce_range=False)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    AdaRound(AdaRound.Options(iterations=20, positions=64)).apply(graph, context)
    found = layers(graph)
    assert len(found) == 4
    for layer in found:
        assert layer.quantizer is not None
        assert quantize.sqnr_db(layer.weight, layer.quantizer(layer.weight)) > 100
    moved = {name for name, value in graph.state_dict().items() if not torch.equal(before[name], value)}
    assert moved == {f"model.{index}.weight" for index in (0, 2, 4, 7)}


def test_neighbours_keep_their_bound_and_channels_their_scale_when_the_range_is_reduced() -> None:
    graph, context = calibrated(row(), images(32), reduce_range=True)
    before = {layer.node.name: layer.quantizer.parameters_of(layer.weight)[0] for layer in layers(graph)}  # type: ignore[union-attr]
    AdaRound(AdaRound.Options(iterations=200, positions=256)).apply(graph, context)
    for layer in layers(graph):
        assert layer.quantizer is not None
        scale = layer.quantizer.parameters_of(layer.weight)[0]
        torch.testing.assert_close(scale, before[layer.node.name], rtol=1e-6, atol=0.0)
        codes = torch.round(layer.quantizer(layer.weight) / scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        assert layer.quantizer.pairs == (layer.weight.ndim == 2 or layer.weight.shape[1] > 1)
        assert not layer.quantizer.pairs or float(largest_pair(codes).max()) <= 128


def test_later_layers_are_fitted_to_what_the_quantized_ones_give_them() -> None:
    graph, context = calibrated(row(), images(32))
    seen: dict[str, list[float]] = {}
    last = layers(graph)[-1]

    def record() -> None:
        values: list[Tensor] = []
        watch(graph, images(32), lambda node, value: values.append(value), nodes=[last.node.args[0]])  # type: ignore[list-item]
        seen.setdefault("inputs", []).append(float(values[0].sum()))

    record()
    AdaRound(AdaRound.Options(iterations=50, positions=256)).apply(graph, context)
    record()
    assert seen["inputs"][0] != seen["inputs"][1]  # earlier layers were rounded otherwise, and the last one read that


def test_layers_that_stay_float_are_left_alone() -> None:
    graph, context = calibrated(row(), images(32), float_layers=["2"])
    before = graph.get_parameter("model.2.weight").detach().clone()
    AdaRound(AdaRound.Options(iterations=20, positions=64)).apply(graph, context)
    assert torch.equal(graph.get_parameter("model.2.weight"), before)


def test_no_more_numbers_are_held_than_the_bound_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    windows = adaround._windows

    def counted(*arguments: Any) -> Tensor:
        found = windows(*arguments)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(adaround, "_windows", counted)
    monkeypatch.setattr(adaround, "_LARGEST", 300)
    graph, context = calibrated(row(), images(32))
    AdaRound(AdaRound.Options(iterations=1)).apply(graph, context)
    # 18 weights a channel of the first layer: one place for each of 32 samples, 16 in a batch
    assert sizes[0] == 16 * 18


def test_no_data_is_refused() -> None:
    graph, context = calibrated(row(), images(16))
    with pytest.raises(DataError, match="A correction saw no data"):
        AdaRound(AdaRound.Options()).apply(graph, Context(list, X86, True, 0, context.reference))


@pytest.mark.parametrize("beta", [None, 3.0])
def test_every_step_follows_the_gradient_that_autograd_finds(beta: float | None) -> None:
    posed = problem()
    floor = posed.steps.floor()
    values = (posed.steps - floor - 0.5).requires_grad_()
    share = rectified_sigmoid(values)
    outputs = posed.inputs @ ((floor + share).clamp(-8, 7) * posed.scale).transpose(1, 2) + posed.bias
    whole = (outputs - posed.wanted).square().sum(2).mean(1).sum()
    if beta is not None:
        whole = whole + 0.01 * regularizer(share, beta)
    whole.backward()
    found, steepness = _rounding._sigmoid_and_slope(values.detach())
    slope = posed.slope(slice(None), floor + found)
    if beta is not None:
        slope = slope + 0.01 * _rounding._regularizer_slope(found, beta)
    torch.testing.assert_close(slope * steepness, values.grad)


def test_steps_are_those_of_adam() -> None:
    ours, theirs = normal(5), nn.Parameter(normal(5))
    optimizer = torch.optim.Adam([theirs], lr=0.03)
    moments = torch.zeros(5), torch.zeros(5)
    for step in range(5):
        slope = normal(5, seed=step)
        _rounding._adam(ours, slope.clone(), moments, step + 1, 0.03)
        theirs.grad = slope
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach())
