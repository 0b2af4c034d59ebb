"""The committed comparison with torchdistill: complete, true to its tolerance, and about the losses as they are now.

torchdistill itself is not installed here; its values are the record's.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.catalog import CATALOGS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECORD: dict[str, Any] = json.loads((BENCHMARKS / "results" / "torchdistill_values.json").read_text(encoding="utf-8"))
ROWS: dict[str, Any] = RECORD["rows"]
NAMED = (
    "kd", "attention", "similarity_preserving", "correlation_congruence", "rkd_distance", "rkd_angle", "pkt", "vid",
    "crd", "nst", "fsp", "ab", "dist",
)  # fmt: skip
TOLERANCE = 1e-5
ROUNDED = 1e-4  # five digits are written: two sides of a rounding lie that far apart at most


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a part of the comparison as Python does when it is run."""
    for folder in ("", "quantization", "methods"):
        monkeypatch.syspath_prepend(str(BENCHMARKS / folder))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def each_case() -> list[tuple[str, str, dict[str, Any]]]:
    found = [(loss, name, case) for loss, row in ROWS.items() for name, case in row["cases"].items()]
    assert len(found) >= 2 * len(NAMED)
    return found


# what is written


def test_record_has_every_loss_that_was_to_be_compared() -> None:
    assert sorted(ROWS) == sorted(NAMED)
    assert set(NAMED) <= set(CATALOGS["losses"].names())
    assert all(row["n"] == len(row["cases"]) >= 2 for row in ROWS.values())


def test_record_says_what_it_was_made_with() -> None:
    assert RECORD["benchmark"] == "methods/torchdistill_values"
    assert RECORD["command"] == "python benchmarks/methods/torchdistill_values.py"
    assert RECORD["tolerance"] == TOLERANCE
    assert set(RECORD["peer_versions"]) >= {"torchdistill", "torch", "python"}


@pytest.mark.parametrize("loss", NAMED)
def test_losses_said_to_agree_do(loss: str) -> None:
    row = ROWS[loss]
    assert row["agrees"] == all(case.get("agrees", False) for case in row["cases"].values())
    if row["agrees"]:
        assert row["difference"] <= TOLERANCE
        assert row["gradient_difference"] <= TOLERANCE
    for case in row["cases"].values():
        if "joined" in case:
            assert case["agrees"]  # whatever can be joined agrees
            assert case["difference"] <= row["difference"]
            assert case["edgekd"] == pytest.approx(case["joined"], rel=case["difference"] + ROUNDED)


@pytest.mark.parametrize("loss", NAMED)
def test_losses_that_differ_or_leave_the_paper_say_who_follows_it(loss: str) -> None:
    row = ROWS[loss]
    same = row["agrees"] and all(row["follows_paper"].values())
    assert row["joins"]
    assert row["paper"]
    assert bool(row["differs"]) != same
    if not same:
        assert "paper" in row["differs"] or "equation" in row["differs"]


def test_only_convention_keeps_the_others_from_agreeing() -> None:
    apart = {loss: row for loss, row in ROWS.items() if not row["agrees"] and row["torchdistill"]}
    assert set(apart) == {"similarity_preserving", "pkt"}
    for row in apart.values():
        assert row["follows_paper"] == {"edgekd": True, "torchdistill": False}
        for case in row["cases"].values():
            assert max(case["torchdistill_and_its_convention"].values()) <= TOLERANCE


def test_edgekd_follows_every_equation_but_those_whose_docstrings_say_otherwise() -> None:
    leaving = {loss for loss, row in ROWS.items() if not row["follows_paper"]["edgekd"]}
    assert leaving == {"attention", "crd"}


# what was written is still so


def test_record_is_of_the_cases_and_values_that_edgekd_has_now(script: Any) -> None:
    comparison, drawn = script("torchdistill_values"), script("_loss_cases").cases(RECORD["seed"])
    assert [(case.loss, case.name) for case in sorted(drawn, key=lambda case: NAMED.index(case.loss))] == [
        (loss, name) for loss, name, _ in sorted(each_case(), key=lambda one: NAMED.index(one[0]))
    ]
    for case in drawn:
        written = ROWS[case.loss]["cases"][case.name]
        assert (written["shapes"], written["options"]) == (case.shapes, dict(case.options))
        value, _ = comparison.ours(case)
        assert value == pytest.approx(written["edgekd"], rel=ROUNDED), case.key


def test_record_says_of_the_equations_what_edgekd_does_now(script: Any) -> None:
    drawn = script("_loss_cases").cases(RECORD["seed"])
    found = script("torchdistill_values").rows(drawn, {})
    for loss, row in ROWS.items():
        assert found[loss]["follows_paper"]["edgekd"] == row["follows_paper"]["edgekd"]
        assert (found[loss]["joins"], found[loss]["differs"]) == (row["joins"], row["differs"])
        for name, case in row["cases"].items():
            now = found[loss]["cases"][name]["equation"]
            assert now["value"] == pytest.approx(case["equation"]["value"], rel=ROUNDED)
            assert now["edgekd"]["times"] == pytest.approx(case["equation"]["edgekd"]["times"], rel=ROUNDED)


# the comparison itself


@pytest.mark.parametrize(("factor", "agrees"), [(1.0, True), (1 + 5e-6, True), (1 + 2e-5, False)])
def test_rows_call_a_relative_difference_above_the_tolerance_none(script: Any, factor: float, agrees: bool) -> None:
    comparison = script("torchdistill_values")
    chosen = [case for case in script("_loss_cases").cases(1) if case.loss == "kd"]
    answers = {}
    for case in chosen:
        value, gradient = comparison.ours(case)
        for kind in ("value", "joined"):
            answers[f"{case.key}/{kind}"] = np.float64(value * factor)
            answers[f"{case.key}/{kind}_gradient"] = gradient
    row = comparison.rows(chosen, answers)["kd"]
    assert row["agrees"] is agrees
    assert row["difference"] == pytest.approx(abs(1 - 1 / factor), abs=1e-9)
    assert f"| kd | KDLoss | {'yes' if agrees else 'no'} |" in comparison.table({"kd": row})


def test_a_gradient_of_another_direction_follows_no_equation(script: Any) -> None:
    comparison = script("torchdistill_values")
    case = next(case for case in script("_loss_cases").cases(0) if case.loss == "pkt")
    value, gradient = comparison.ours(case)
    gradient[0] += 1e-3 * np.abs(gradient).max()
    answers = {f"{case.key}/value": np.float64(3 * value), f"{case.key}/value_gradient": 3 * gradient}
    held = comparison.rows([case], answers)["pkt"]["cases"][case.name]["equation"]
    assert held["edgekd"]["follows"]
    assert not held["torchdistill"]["follows"]
    assert held["torchdistill"]["times"] == pytest.approx(3 * held["edgekd"]["times"])


def test_two_seeds_draw_other_tensors_of_the_same_shapes(script: Any) -> None:
    first, second = script("_loss_cases").cases(0), script("_loss_cases").cases(1)
    assert len({case.key for case in first}) == len(first)
    for one, other in zip(first, second, strict=True):
        assert one.shapes == other.shapes
        assert not np.array_equal(one.tensors["student"], other.tensors["student"])
