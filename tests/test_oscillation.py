"""Weights that swing between two codes: a toy regression where they do, and both remedies on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.calibration._learning import quantized_weights
from edgekd.calibration.minmax import MinMax
from edgekd.catalog import CATALOGS
from edgekd.quantize import OscillationGuard, OscillationOptions
from edgekd.spec import Options

X86 = CATALOGS["targets"].load("onnxruntime_x86").member.numerics
# 127 holds the scale at 1; the best values of the two others lie between two codes
BEST = torch.tensor([[127.0, 10.2, -3.6]])


@cache
def _regression() -> GraphModule:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 1)).eval()
    with torch.no_grad():
        network[1].weight.copy_(BEST.round() + torch.tensor([[0.0, 0.3, 0.3]]))  # type: ignore[operator, union-attr]
        network[1].bias.zero_()  # type: ignore[operator, union-attr]
    graph = quantize.prepare(network, inputs(4), numerics=X86, calibrator=MinMax(Options()), reduce_range=False)
    quantize.calibrate(graph, [inputs(64)])
    return graph


def inputs(count: int, seed: int = 0) -> Tensor:
    """Random values; the first is always 0, since the rounding of what is multiplied by 127 would drown the rest."""
    values = torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    values[:, 0] = 0.0
    return values


def weight_of(graph: GraphModule) -> nn.Parameter:
    ((_, weight),) = quantized_weights(graph)
    return weight


def codes_of(graph: GraphModule) -> Tensor:
    ((quantizer, weight),) = quantized_weights(graph)
    return (weight.detach() / quantizer.parameters_of(weight)[0]).round().flatten()


@cache
def unguarded() -> tuple[GraphModule, list[Tensor]]:
    graph, seen, _ = trained(None)
    return graph, seen


def trained(options: OscillationOptions | None, *, steps: int = 250) -> tuple[GraphModule, list[Tensor], Any]:
    """The regression after some steps of gradient descent, the codes before every step, and the guard."""
    graph = copy.deepcopy(_regression())
    guard = OscillationGuard(graph, options) if options else None
    weight, seen = weight_of(graph), []
    optimizer = torch.optim.SGD([weight], lr=0.02)
    for step in range(steps):
        if guard:
            guard.step(step / steps)
        seen.append(codes_of(graph))
        batch = inputs(64, seed=step)
        loss = (graph(batch)[0] - batch.flatten(1) @ BEST.T).square().mean()
        if guard:
            loss = loss + sum(term.value * term.weight for term in guard.terms().values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return graph, seen, guard


def flips(seen: list[Tensor], start: float = 0.5) -> list[int]:
    """How often each code changed in the last part of the training."""
    late = torch.stack(seen[int(len(seen) * start) :])
    return [int(count) for count in (late[1:] != late[:-1]).sum(0)]


def test_weights_between_two_codes_swing_without_a_guard() -> None:
    _, seen = unguarded()
    counts = flips(seen)
    assert counts[0] == 0
    assert min(counts[1:]) >= 8


@pytest.mark.parametrize(
    "options",
    [
        OscillationOptions(dampening=4.0),
        OscillationOptions(freeze_above=0.02, momentum=0.02),
        OscillationOptions(freeze_above=0.1, freeze_above_at_end=0.01, momentum=0.02),
        OscillationOptions(dampening=4.0, freeze_above=0.02, momentum=0.02),
    ],
    ids=["dampening", "freezing", "freezing by schedule", "both"],
)
def test_weights_settle_on_a_code_next_to_their_best_value_when_guarded(options: OscillationOptions) -> None:
    graph, seen, guard = trained(options)
    assert sum(flips(seen, start=0.8)) == 0
    guard.close()
    assert float((codes_of(graph) - BEST.flatten()).abs().max()) < 1.0


def test_dampening_leaves_weights_at_the_middle_of_their_codes() -> None:
    loose, _ = unguarded()
    tight, _, _ = trained(OscillationOptions(dampening=4.0))

    def distance(graph: GraphModule) -> float:
        ((quantizer, weight),) = quantized_weights(graph)
        return float((weight.detach() - codes_of(graph) * quantizer.parameters_of(weight)[0]).abs().max())

    assert distance(loose) > 0.3
    assert distance(tight) < 0.15


def test_frozen_weight_has_the_code_where_it_was_most() -> None:
    graph, seen, guard = trained(OscillationOptions(freeze_above=0.02, momentum=0.02))
    assert guard.frozen_share() == pytest.approx(2 / 3)
    guard.close()
    # 10.2 is nearer to 10, -3.6 to -4: that is where they were longer
    assert codes_of(graph).tolist() == [127.0, 10.0, -4.0]
    assert seen[-1].tolist() == codes_of(graph).tolist()


def test_nothing_freezes_and_no_term_is_added_unless_asked_for() -> None:
    graph, seen, guard = trained(OscillationOptions())
    assert guard.frozen_share() == 0.0
    assert guard.terms() == {}
    plain, codes = unguarded()
    assert all(torch.equal(one, other) for one, other in zip(seen, codes, strict=True))
    assert torch.equal(weight_of(graph), weight_of(plain))


# numbers


def watched(moves: Callable[[Tensor], None] | None = None, **options: Any) -> tuple[GraphModule, OscillationGuard]:
    graph = copy.deepcopy(_regression())
    with torch.no_grad():
        weight_of(graph).copy_(torch.tensor([[127.0, 10.0, -4.0]]))
    return graph, OscillationGuard(graph, OscillationOptions(**options))


def put(graph: GraphModule, value: float) -> None:
    with torch.no_grad():
        weight_of(graph)[0, 1] = value


def test_frequency_counts_turns_as_worked_by_hand() -> None:
    graph, guard = watched(momentum=0.5)
    record = next(one for name, one in graph.named_modules() if name.endswith("oscillation"))
    found = []
    # up is no turn, down again is one, standing still none, further down none, up one
    for value in (11.0, 10.0, 10.0, 9.0, 10.0):
        put(graph, value)
        guard.step(0.0)
        found.append(float(record.frequency[0, 1]))  # type: ignore[index, union-attr]
    assert found == pytest.approx([0.0, 0.5, 0.25, 0.125, 0.5625])
    # the mean code: 10, then half of the way to each
    assert float(record.mean[0, 1]) == pytest.approx(9.78125)  # type: ignore[index, union-attr]


def test_weight_freezes_at_its_rounded_mean_and_is_put_back_after_every_step() -> None:
    graph, guard = watched(momentum=0.5, freeze_above=0.4)
    for value in (11.4, 10.4):
        put(graph, value)
        guard.step(0.0)
    # mean codes 10.5 and 10.25
    assert float(weight_of(graph)[0, 1].detach()) == 10.0
    assert guard.frozen_share() == pytest.approx(1 / 3)
    put(graph, 30.0)
    guard.step(0.0)
    assert float(weight_of(graph)[0, 1].detach()) == 10.0
    put(graph, 30.0)
    guard.close()
    assert float(weight_of(graph)[0, 1].detach()) == 10.0


def test_dampening_term_is_the_one_worked_by_hand() -> None:
    graph, guard = watched(dampening=8.0)
    put(graph, 10.25)
    guard.step(0.5)
    term = guard.terms()["dampening"]
    # a quarter off, squared; half a cosine up is half of the weight
    assert float(term.value.detach()) == pytest.approx(0.0625)
    assert term.weight == pytest.approx(4.0)
    term.value.backward()
    # towards the code: twice the distance
    assert weight_of(graph).grad is not None
    assert weight_of(graph).grad[0].tolist() == pytest.approx([0.0, 0.5, 0.0])  # type: ignore[index]
    guard.step(0.0)
    assert guard.terms()["dampening"].weight == 0.0


def test_threshold_falls_along_half_a_cosine() -> None:
    _, guard = watched(freeze_above=0.1, freeze_above_at_end=0.02)
    limits = []
    for progress in (0.0, 0.5, 1.0):
        guard.step(progress)
        limits.append(guard._limit())
    assert limits == pytest.approx([0.1, 0.06, 0.02])


# state


def test_interrupted_training_goes_on_as_it_was() -> None:
    graph, guard = watched(momentum=0.5, freeze_above=0.9)
    for value in (11.0, 10.0, 11.0):
        put(graph, value)
        guard.step(0.0)
    other, again = watched(momentum=0.5, freeze_above=0.9)
    other.load_state_dict(graph.state_dict())
    for one, its in ((graph, guard), (other, again)):
        for value in (10.0, 11.0, 10.0):
            put(one, value)
            its.step(0.0)
    assert guard.frozen_share() == again.frozen_share() == pytest.approx(1 / 3)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in graph.state_dict().items())


def test_closed_guard_leaves_nothing_in_the_graph() -> None:
    graph, guard = watched()
    assert any("oscillation" in name for name in graph.state_dict())
    guard.close()
    assert graph.state_dict().keys() == _regression().state_dict().keys()
    with pytest.raises(AttributeError):
        guard.step(0.0)


def test_guard_counts_no_evaluation_and_does_not_touch_the_forward() -> None:
    graph, guard = watched(freeze_above=0.1)
    before = graph(inputs(4))[0]
    with torch.no_grad():
        for _ in range(3):
            graph(inputs(4))
    guard.step(0.0)
    assert torch.equal(graph(inputs(4))[0], before)
    assert guard.frozen_share() == 0.0
