"""Ranges that learn: where they start, what they may become, and what is left when they have learned."""

from __future__ import annotations

import copy
import warnings
from functools import cache

import pytest
import torch
from odd_networks import images, odd_network
from torch import Tensor
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.calibration._base import Grid
from edgekd.calibration._fake_quantize import ActivationQuantizer, WeightQuantizer, quantizers, set_phase
from edgekd.calibration._learning import learn_ranges, quantized_weights, settle_ranges, settled_state
from edgekd.calibration._rounding import moved_ends
from edgekd.calibration.minmax import MinMax
from edgekd.catalog import CATALOGS
from edgekd.errors import UsageError
from edgekd.spec import Options

UNSIGNED = Grid(0, 255, symmetric=False)
SYMMETRIC = Grid(-128, 127, symmetric=True)
HALF = Grid(-128, 127, symmetric=True, half_scales=True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def learning(grid: Grid, values: Tensor) -> ActivationQuantizer:
    """A quantizer that was calibrated on these values and learns from there."""
    quantizer = ActivationQuantizer(MinMax(Options()), grid, torch.uint8, grid.low, grid.high, torch.per_tensor_affine)
    quantizer.phase = "observe"
    quantizer(values)
    quantizer.calibrate()
    quantizer.learn()
    quantizer.phase = "learn"
    return quantizer


@cache
def _graph(target: str) -> GraphModule:
    member = CATALOGS["targets"].load(target).member
    prepared = quantize.prepare(
        odd_network("InPlace"),
        images(4),
        numerics=member.numerics,
        calibrator=MinMax(Options()),
        reduce_range=False,
    )
    quantize.calibrate(prepared, images(32).split(16))
    return prepared


def graph(target: str = "onnxruntime_x86") -> GraphModule:
    """A calibrated graph of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(_graph(target))


# where learning starts


@pytest.mark.parametrize("target", CATALOGS["targets"].names())
def test_learning_starts_with_what_the_calibrated_graph_computes(target: str) -> None:
    prepared = graph(target)
    before = prepared(images(8))[0]
    learn_ranges(prepared)
    for phase in ("learn", "frozen"):
        set_phase(prepared, phase)  # type: ignore[arg-type]
        assert torch.equal(prepared(images(8))[0], before), phase


def test_every_range_of_a_graph_has_a_gradient_while_it_learns_and_none_when_frozen() -> None:
    prepared = graph()
    learn_ranges(prepared, rate=0.5)
    scales = {name: one for name, one in prepared.named_parameters() if name.endswith((".gain", ".shift"))}
    assert len(scales) >= 7
    prepared(images(8))[0].square().sum().backward()
    assert all(one.grad is None for one in scales.values())  # still frozen
    set_phase(prepared, "learn")
    prepared(images(8) * 2)[0].square().sum().backward()
    missing = [name for name, one in scales.items() if one.grad is None or not one.grad.abs().sum() > 0]
    assert missing == []
    assert {quantizer.own_rate for _, quantizer in quantizers(prepared)} == {0.5}


@pytest.mark.parametrize(("activations", "weights"), [(True, False), (False, True)])
def test_either_kind_learns_alone(activations: bool, weights: bool) -> None:
    prepared = graph()
    learn_ranges(prepared, activations=activations, weights=weights)
    of_input = next(user.target for node in prepared.graph.nodes if node.op == "placeholder" for user in node.users)
    for name, quantizer in quantizers(prepared):
        expected = activations if isinstance(quantizer, ActivationQuantizer) else weights
        # data do not adapt to a range: the input's stays as calibrated
        assert (quantizer.gain is not None) is (expected and name != of_input)


def test_phase_learn_is_refused_when_nothing_can() -> None:
    with pytest.raises(UsageError, match=r"Call learn_ranges before phase 'learn'"):
        set_phase(graph(), "learn")


def test_offset_learns_only_where_the_range_reaches_below_zero() -> None:
    assert learning(UNSIGNED, normal(100)).shift is not None
    assert learning(UNSIGNED, normal(100).relu()).shift is None  # a zero-point that absorbs a ReLU stays
    assert learning(SYMMETRIC, normal(100)).shift is None


def test_zero_point_stays_at_the_lowest_code_behind_a_relu_whatever_is_learned() -> None:
    quantizer = learning(UNSIGNED, normal(1000).relu())
    assert quantizer.gain is not None
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.05)
    for step in range(20):
        quantizer(normal(50, 4, seed=step).relu() * 2).square().sum().mul(-1).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert int(quantizer.calculate_qparams()[1]) == 0
    assert float(quantizer.gain.detach()) != 1.0


def test_weights_pair_with_the_quantizers_that_read_them() -> None:
    prepared = graph()
    prepared(images(2))
    pairs = list(quantized_weights(prepared))
    weights = {"model.a.0.weight", "model.b.0.weight", "model.head.fc.weight"}
    assert {id(weight) for _, weight in pairs} == {id(prepared.get_parameter(name)) for name in weights}
    for quantizer, weight in pairs:
        assert torch.equal(quantizer.calculate_qparams()[0], quantizer.parameters_of(weight)[0])


# what a range may become


def test_one_step_of_gradient_descent_moves_the_scale_as_the_paper_says() -> None:
    quantizer = learning(SYMMETRIC, torch.tensor([-1.28, 1.27]))
    assert quantizer.gain is not None
    before = float(quantizer.calculate_qparams()[0])
    assert before == pytest.approx(0.01)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1e-3)
    # two values beyond the upper end: each output is Q_P s, so the sum has the derivative 2 * 127 by s
    quantizer(torch.tensor([[5.0, 5.0]])).sum().backward()
    optimizer.step()
    after = float(quantizer.calculate_qparams()[0])
    # s - lr * 2 * 127 / sqrt(N Q_P), with N = 2
    assert after == pytest.approx(max(before - 1e-3 * 254 / (2 * 127) ** 0.5, 0.01 / 1024), rel=1e-4)


@pytest.mark.parametrize("values", [normal(100), normal(100).relu()], ids=["both sides", "one side"])
@pytest.mark.parametrize("grid", [UNSIGNED, SYMMETRIC, HALF])
def test_scale_stays_positive_and_finds_back_when_a_step_was_far_too_large(grid: Grid, values: Tensor) -> None:
    quantizer = learning(grid, values)
    assert quantizer.gain is not None
    with torch.no_grad():
        quantizer.gain.fill_(-3.0)
    optimizer = torch.optim.SGD([quantizer.gain], lr=1e-4)
    data = normal(4, 30, seed=1)
    output = quantizer(data)
    assert float(quantizer.calculate_qparams()[0]) > 0
    assert output.isfinite().all()
    smallest = float(quantizer.gain.detach())
    assert smallest == pytest.approx(2.0**-10)
    # at the bound the gradient still flows: everything is clipped, and a larger range would be nearer to the data
    (output - data).square().sum().backward()
    assert float(quantizer.gain.grad) < 0  # type: ignore[arg-type]
    optimizer.step()
    assert float(quantizer.gain.detach()) > smallest


def test_scales_of_weights_stay_positive() -> None:
    quantizer = WeightQuantizer(Grid(-127, 127, True), torch.int8, -127, 127, torch.per_channel_symmetric)
    weight = normal(3, 8)
    quantizer.learn(weight)
    quantizer.phase = "learn"
    with torch.no_grad():
        quantizer.gain.fill_(-1.0)  # type: ignore[union-attr]
    assert quantizer(weight).isfinite().all()
    assert bool((quantizer.calculate_qparams()[0] > 0).all())


def test_learned_scales_are_float16_values_where_the_file_stores_them_so() -> None:
    quantizer = learning(HALF, normal(100))
    with torch.no_grad():
        quantizer.gain.fill_(1.2345)  # type: ignore[union-attr]
    scale = quantizer.calculate_qparams()[0]
    assert torch.equal(scale, scale.half().float())
    values = normal(50, seed=1)
    codes = quantizer(values) / scale
    assert torch.allclose(codes, codes.round(), atol=1e-4)


def test_range_that_learns_is_not_tracked() -> None:
    quantizer = learning(UNSIGNED, normal(100))
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.phase = "track"
    quantizer(normal(100) * 50)
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_learned_ends_are_those_worked_by_hand() -> None:
    low, high = torch.tensor(-1.0), torch.tensor(3.0)
    assert moved_ends(low, high, torch.tensor([1.5]), None) == (torch.tensor(-1.5), torch.tensor(4.5))
    # the lower end moves by half the width of 4, the width doubles
    assert moved_ends(low, high, torch.tensor([2.0]), torch.tensor([-0.5])) == (torch.tensor(-3.0), torch.tensor(5.0))


# what is left


@pytest.mark.parametrize("target", ["onnxruntime_x86", "tensorrt"])
def test_settled_graph_computes_what_was_learned_and_has_no_more_parameters(target: str) -> None:
    prepared = graph(target)
    parameters = [name for name, _ in prepared.named_parameters()]
    names = set(prepared.state_dict())
    learn_ranges(prepared)
    with torch.no_grad():
        for seed, (name, one) in enumerate(prepared.named_parameters()):
            if name.endswith((".gain", ".shift")):
                one.add_(0.2 * normal(*one.shape, seed=seed).abs())
    learned = prepared(images(8))[0]
    state = {name: value.clone() for name, value in prepared.state_dict().items()}
    assert {name.rpartition(".")[2] for name in set(state) - names} <= {"gain", "shift", "scale"}
    settle_ranges(prepared)
    assert torch.equal(prepared(images(8))[0], learned)
    assert [name for name, _ in prepared.named_parameters()] == parameters
    # the names of activations are those that tracking has; only weights keep something of their own
    assert {name.rpartition(".")[2] for name in set(prepared.state_dict()) - names} == {"scale"}
    settled = settled_state(prepared, state)
    assert settled.keys() == prepared.state_dict().keys()
    assert all(torch.equal(settled[name], value) for name, value in prepared.state_dict().items())


def test_calibrating_anew_ends_learning() -> None:
    prepared = graph()
    learn_ranges(prepared, weights=False)
    quantize.calibrate(prepared, images(32).split(16))
    assert not any(name.endswith((".gain", ".shift")) for name, _ in prepared.named_parameters())


def test_settled_state_leaves_a_network_s_own_gain_alone() -> None:
    prepared = graph()
    state = {"model.block.gain": torch.ones(3)}
    assert settled_state(prepared, state) == state
