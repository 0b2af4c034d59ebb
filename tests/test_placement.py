"""The placement search: its candidates, its choice, and that it never takes what is not faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import pytest
import torch
from int8_models import FAMILIES, target

from edgekd import quantize
from edgekd.catalog import CATALOGS
from edgekd.errors import MismatchError, UsageError
from edgekd.measure import Protocol
from edgekd.placement import DEFAULT, Candidate, Placement, candidates, search
from edgekd.spec import TensorSpec
from edgekd.targets._groups import groups

NUMERICS = target("onnxruntime_x86").numerics
PROTOCOL = Protocol(
    budget_ms=500.0, percentile=50.0, confidence=0.9, queries=40, max_seconds=20.0, warmup_max_seconds=0.2
)


class Sleeper:
    """A real runner whose work is arithmetic of a chosen length."""

    provider_requested = provider_used = "here"
    inputs: Sequence[TensorSpec] = ()
    outputs: Sequence[TensorSpec] = ()

    def __init__(self, size: int) -> None:
        self.matrix = np.random.default_rng(0).normal(size=(size, size))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": self.matrix @ self.matrix}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        pass


def placements(*names: str) -> list[Placement]:
    usual = ["add", "convolution", "mul"]
    made = [Placement(name=DEFAULT, operators=usual)]
    for name in names:
        made.append(Placement(name=f"without {name}", operators=[one for one in usual if one != name]))
    return made


def sizes(**known: int) -> object:
    """A builder by what a placement leaves out; two changes at once cost the least."""

    def build(placement: Placement) -> Candidate:
        missing = [one for one in ("add", "mul") if one not in placement.operators]
        size = known["both"] if len(missing) == 2 else known[missing[0]] if missing else known["default"]
        return Candidate(placement, lambda: Sleeper(size))  # type: ignore[return-value, arg-type]

    return build


def test_candidates_differ_from_the_default_in_one_thing():
    member = CATALOGS["models"].load("mobilenet_v2").member
    network = member(member.Options(**FAMILIES["mobilenet_v2"])).build(10, (3, 32, 32)).eval()
    found = groups(quantize.folded(network, torch.randn(2, 3, 32, 32)))
    made = candidates(found, NUMERICS)
    assert made[0].name == DEFAULT
    assert set(made[0].operators) == NUMERICS.operators
    assert [one.name for one in made[1:]] == [
        "without add",
        "without global_average_pool",
        "features.0.0 in float",
        "classifier.1 in float",
    ]
    for one in made[1:]:
        assert len(NUMERICS.operators ^ set(one.operators)) + len(one.float_layers) == 1


def test_the_changes_that_pay_are_joined_and_taken():
    found = search(placements("add", "mul"), sizes(default=220, add=120, mul=120, both=40), {}, protocol=PROTOCOL)  # type: ignore[arg-type]
    assert set(found.chosen.operators) == {"convolution"}
    assert found.chosen.name in ("without add and without mul", "without mul and without add")


def test_the_default_stays_where_nothing_is_faster():
    found = search(placements("add"), sizes(default=80, add=160, both=80, mul=80), {}, protocol=PROTOCOL)  # type: ignore[arg-type]
    assert found.chosen.name == DEFAULT
    assert found.notes == ["No candidate is faster than the default beyond doubt."]


def test_a_faster_candidate_that_loses_accuracy_is_not_taken():
    found = search(
        placements("add"),
        sizes(default=160, add=60, both=60, mul=60),  # type: ignore[arg-type]
        {},
        protocol=PROTOCOL,
        accepts=lambda placement: "it loses 3 points",
    )
    assert found.chosen.name == DEFAULT
    assert "was not taken: it loses 3 points" in found.notes[0]


def test_a_candidate_that_cannot_be_built_is_left_out_with_its_reason():
    def build(placement: Placement) -> Candidate:
        if placement.name != DEFAULT:
            raise MismatchError("no such kernel")
        return Candidate(placement, lambda: Sleeper(40))  # type: ignore[return-value, arg-type]

    found = search(placements("add"), build, {}, protocol=PROTOCOL)
    assert found.chosen.name == DEFAULT
    assert found.timed[1].refused == "no such kernel"


def test_the_default_must_come_first():
    with pytest.raises(UsageError, match="takes the default placement first"):
        search(placements("add")[1:], sizes(default=1, add=1, both=1, mul=1), {}, protocol=PROTOCOL)  # type: ignore[arg-type]
