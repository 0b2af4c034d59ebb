"""mixed: exactly the bad layers go to float, unneeded ones come back, and the way there is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import pytest
import torch
from blamed_networks import BAD, graph, network, numerics, samples
from torch import Tensor

from edgekd import mixed
from edgekd._sensitivity_model import GroupCosts, MixedPrecision, Sensitivity, Step
from edgekd.errors import MismatchError, UsageError
from edgekd.mixed import Forward, restoration_order, restore
from edgekd.quantize import sqnr_db
from edgekd.sensitivity import measure

NAMES = ["a", "b", "c", "global_average_pool", "head"]


def costs(ms: Mapping[str, float] | float = 0.1, *, conversion_ns: float = 0.0) -> GroupCosts:
    """The same cost for every group, or those given and 0.1 ms for the others."""
    by_name = dict.fromkeys(NAMES, 0.1) | dict(ms) if isinstance(ms, Mapping) else dict.fromkeys(NAMES, ms)
    return GroupCosts(
        ms=by_name,
        int8_ms=1.0,
        float_ms=1.0 + sum(by_name.values()),
        assigned=1.0,
        quantize_ns=conversion_ns,
        dequantize_ns=conversion_ns,
    )


@cache
def sensitivity(name: str) -> Sensitivity:
    inputs, labels = samples(name)
    return measure(graph(name), [(inputs, labels)], numerics=numerics())


def with_gains(gains: Mapping[str, float]) -> Sensitivity:
    """A sensitivity that says something else than is true."""
    found = sensitivity("fine")
    rows = [
        row.model_copy(
            update={
                "kl_gain": gains.get(row.name, 0.0),
                "kl_gain_output": 0.0,
                "readers": [],
            }
        )
        for row in found.groups
    ]
    return found.model_copy(update={"groups": rows})


def accuracy(name: str) -> Callable[[Forward], float]:
    inputs, labels = samples(name)
    return lambda forward: float((forward(inputs).argmax(1) == labels).float().mean())


def restored(
    name: str,
    *,
    max_drop: float = 0.0,
    found: Sensitivity | None = None,
    cost: GroupCosts | None = None,
    latency: Callable[[Sequence[str]], float] | None = None,
) -> MixedPrecision:
    return restore(
        graph(name),
        found or sensitivity(name),
        costs=cost or costs(),
        numerics=numerics(),
        metric=accuracy(name),
        max_drop=max_drop,
        latency=latency,
    )


@pytest.mark.parametrize("name", sorted(BAD))
def test_exactly_the_bad_layers_go_to_float(name: str) -> None:
    found = restored(name)
    assert found.float_layers == BAD[name]
    assert found.drop == 0.0
    assert not found.all_float
    assert found.final.holds


def test_nothing_is_restored_when_int8_loses_nothing() -> None:
    found = restored("fine", max_drop=0.0)
    assert [step.action for step in found.path] == ["int8", "float"]
    assert found.final.action == "int8"


def test_nothing_is_restored_when_the_drop_is_allowed() -> None:
    found = restored("bad_weights", max_drop=0.9)
    assert found.float_layers == []
    assert 0.0 < found.drop <= 0.9


def test_drop_that_equals_the_limit_holds() -> None:
    drop = restored("bad_weights", max_drop=0.9).drop
    assert restored("bad_weights", max_drop=drop).float_layers == []
    assert restored("bad_weights", max_drop=drop - 1e-6).float_layers == ["b"]


def test_layers_that_were_only_on_the_way_are_given_back() -> None:
    # what was measured lies: b seems to win least
    found = restored(
        "bad_weights",
        found=with_gains({"a": 0.4, "c": 0.3, "b": 0.01}),
        cost=costs({"a": 0.2, "c": 0.3}),
    )
    assert found.float_layers == ["b"]
    assert [(step.action, step.groups, step.accepted) for step in found.path] == [
        ("int8", [], True),
        ("restore", ["a"], True),
        ("restore", ["c"], True),
        ("restore", ["b"], True),
        # the most expensive first; that b is needed is known since the second step
        ("give_back", ["c"], True),
        ("give_back", ["a"], True),
        ("float", [], False),
    ]


def test_everything_goes_to_float_when_nothing_less_holds() -> None:
    inputs, _ = samples("fine")
    with torch.no_grad():
        wanted = network("fine")(inputs)
    found = restore(
        graph("fine"),
        sensitivity("fine"),
        costs=costs(),
        numerics=numerics(),
        metric=lambda forward: float(sqnr_db(wanted, forward(inputs)) > 100.0),
        max_drop=0.0,
        metric_name="equal",
    )
    assert found.all_float
    assert set(found.float_layers) | set(found.followers) == set(NAMES)
    assert found.metric == "equal"


def test_path_tells_every_step() -> None:
    steps: list[Step] = []
    inputs, labels = samples("bad_range")
    found = restore(
        graph("bad_range"),
        sensitivity("bad_range"),
        costs=costs(),
        numerics=numerics(),
        metric=accuracy("bad_range"),
        max_drop=0.0,
        progress=steps.append,
    )
    assert steps == found.path
    first, second, third, fourth, last = found.path
    assert (first.action, first.groups, first.holds) == ("int8", [], False)
    assert (second.action, second.groups, second.float_layers) == ("restore", ["a", "b"], ["a", "b"])
    assert second.holds
    assert second.accepted
    assert {third.groups[0], fourth.groups[0]} == {"a", "b"}
    assert not third.accepted
    assert not fourth.accepted
    assert (last.action, last.metric, last.drop) == ("float", 1.0, 0.0)
    with torch.no_grad():
        assert first.metric == float((graph("bad_range")(inputs)[0].argmax(1) == labels).float().mean())
    assert first.drop == 1.0 - first.metric


def test_latency_is_measured_on_every_step_that_is_taken() -> None:
    asked: list[tuple[str, ...]] = []

    def latency(floats: Sequence[str]) -> float:
        asked.append(tuple(floats))
        return 2.0 + len(floats)

    found = restored("bad_range", latency=latency)
    assert asked == [(), ("a", "b"), tuple(NAMES)]
    assert [step.measured_ms for step in found.path] == [2.0, 4.0, None, None, 7.0]
    assert found.path[1].ms == 4.0
    assert found.path[2].ms == found.path[2].estimated_ms


def test_estimate_adds_costs_and_conversions() -> None:
    found = restored("bad_weights", cost=costs(0.1, conversion_ns=1000.0))
    before, after = (step for step in found.path if step.float_layers in ([], ["b"]))
    # b alone: its cost, 8 * 4 * 4 values back to floats in front of it and as many to codes behind it
    assert after.estimated_ms - before.estimated_ms == pytest.approx(0.1 + 2 * 128 * 1000.0 / 1e6)
    # all float: five costs, and the conversion of the input is gone
    assert found.path[-1].estimated_ms - before.estimated_ms == pytest.approx(0.5 - 128 * 1000.0 / 1e6)


def test_cheapest_accuracy_comes_first() -> None:
    gains = {"a": 0.3, "b": 0.3, "c": 0.1, "head": 0.2}
    order = _order(gains, costs({"a": 0.3, "b": 0.1, "c": 0.01, "head": 0.1}))
    assert order == [("c",), ("b",), ("head",), ("a",), ("global_average_pool",)]


def test_equal_candidates_stay_in_the_order_of_execution() -> None:
    assert _order(dict.fromkeys(NAMES, 0.1), costs()) == [(name,) for name in NAMES]


def test_layer_that_is_faster_in_float_comes_first_when_it_wins_anything() -> None:
    order = _order({"a": 0.5, "c": 0.01}, costs({"c": -0.2}))
    assert order[0] == ("c",)


def test_conversions_count_as_cost() -> None:
    gains = {"b": 0.2, "head": 0.15}
    assert _order(gains, costs())[0] == ("b",)
    # b needs its input turned to floats and its result to codes, the head only its 8 inputs
    assert _order(gains, costs(conversion_ns=1000.0))[0] == ("head",)


def test_layer_and_its_readers_are_one_candidate_when_the_range_is_to_blame() -> None:
    order = restoration_order(graph("bad_range"), sensitivity("bad_range"), costs=costs(), numerics=numerics())
    assert order[0] == ("a", "b")
    assert {unit for unit in order if len(unit) == 1} == {(name,) for name in NAMES}


def _order(gains: Mapping[str, float], cost: GroupCosts) -> list[tuple[str, ...]]:
    return restoration_order(graph("fine"), with_gains(gains), costs=cost, numerics=numerics())


def test_result_is_the_same_every_time() -> None:
    assert restored("bad_weights") == restored("bad_weights")


def test_result_survives_json() -> None:
    found = restored("bad_range")
    assert MixedPrecision.model_validate_json(found.model_dump_json()) == found


def test_mixture_computes_what_was_promised() -> None:
    name = "bad_range"
    found = restored(name)
    twin = mixed.floated(graph(name), found.float_layers, numerics=numerics())
    assert accuracy(name)(lambda inputs: _logits(twin, inputs)) == found.final.metric == 1.0


def _logits(twin: torch.nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = twin(inputs)[0]
    return logits


@pytest.mark.parametrize("max_drop", [-0.1, float("nan")])
def test_negative_limit_is_refused(max_drop: float) -> None:
    with pytest.raises(UsageError, match="max_drop must be >= 0"):
        restored("fine", max_drop=max_drop)


def test_metric_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match="finite number, got nan"):
        restore(
            graph("fine"),
            sensitivity("fine"),
            costs=costs(),
            numerics=numerics(),
            metric=lambda forward: float("nan"),
            max_drop=0.0,
        )


def test_measurements_of_another_graph_are_refused() -> None:
    other = costs().model_copy(update={"ms": {"conv1": 0.1}})
    with pytest.raises(MismatchError, match="costs lack the layer 'a'"):
        restored("fine", cost=other)
    short = sensitivity("fine")
    short = short.model_copy(update={"groups": short.groups[1:]})
    with pytest.raises(MismatchError, match="sensitivity lack the layer 'a'"):
        restored("fine", found=short)
