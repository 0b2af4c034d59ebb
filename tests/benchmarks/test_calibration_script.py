"""The calibration benchmark: its arithmetic by hand, and the whole script at its smallest setting."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as Python runs it, its own folder on the path; by its file, since a folder here has the same name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    spec = importlib.util.spec_from_file_location("calibration_script", FOLDER / "calibration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


def test_decibels_are_those_worked_by_hand(script: Any) -> None:
    wanted = np.array([[3.0, 4.0], [0.0, 0.0]])
    # power 25, errors 0.25 and 0.5
    assert script.db(wanted, wanted + np.array([[0.5, 0.0], [0.0, 0.0]])) == pytest.approx(20.0)
    gain = script.gain(wanted, wanted + 0.1 * np.eye(2), wanted + 0.2 * np.eye(2), seed=0)
    # half the error on every image: the same whatever images are drawn
    assert gain["db"] == pytest.approx(20 * math.log10(2))
    assert gain["ci95"] == pytest.approx([gain["db"]] * 2)


def test_goals_are_met_when_the_interval_reaches_zero(script: Any) -> None:
    def quality(upper: float) -> dict[str, Any]:
        row = {"edgekd_entropy": {"db_over_onnxruntime_entropy": {"db": -0.1, "ci95": [-1.0, upper]}}}
        return {"8_bit_weights": row, "without_vnni": row}

    found = {"speed": {"cpu_times_faster": {"median": 2.9}}, "memory": {"edgekd_most_over_fewest": 1.1}}
    met = script.goals({**found, "quality": quality(0.2)})
    assert [one["met"] for one in met.values()] == [False, True, True]
    assert script.goals({**found, "quality": quality(-0.2)})["entropy_db_over_onnxruntime"]["met"] is False


def test_crops_are_made_anew_in_the_same_way_and_no_photograph_is_in_both_parts(script: Any) -> None:
    model = script.MODELS["tiny"]
    first, again = (torch.cat(list(script.batches(model, 6, seed=0))) for _ in range(2))
    assert first.shape == (6, 3, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.cat(list(script.batches(model, 6, seed=0, held_out=True))))


@pytest.mark.slow
def test_record_has_every_calibrator_when_the_network_is_tiny(script: Any, tmp_path: Path) -> None:
    sizes = ("--timed-images", "8", "--rounds", "2", "--images", "8", "--judged-images", "8")
    out = script.main(
        ["--model", "tiny", *sizes, "--memory-images", "4", "--peer-memory-images", "4", "--out", str(tmp_path / "a")]
    )
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["benchmark"] == script.NAME == "calibration"
    for bits in ("8_bit_weights", "without_vnni"):
        rows = record["quality"][bits]
        assert {f"edgekd_{name}" for name in ("entropy", "minmax", "moving_average", "mse", "percentile")} <= set(rows)
        assert {f"onnxruntime_{name}" for name in ("entropy", "minmax", "percentile")} <= set(rows)
        assert min(row["sqnr_db"] for name, row in rows.items() if not name.endswith("moving_average")) > 20
    assert record["memory"]["edgekd_most_over_fewest"] == 1.0
    assert record["speed"]["cpu_seconds_per_image"]["edgekd"] > 0
