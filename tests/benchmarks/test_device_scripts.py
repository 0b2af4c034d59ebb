"""The devices' benchmark scripts: distributions whose percentiles are what they say, and records in the usual form."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "devices"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a script by its place: other folders have scripts of the same name."""
    for folder in (FOLDER.parent, FOLDER):
        monkeypatch.syspath_prepend(str(folder))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"devices_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


def record_of(module: ModuleType, out: Path, *arguments: str) -> dict[str, Any]:
    """Runs a script's main and reads what it wrote, after checking what every record must have."""
    assert module.main([*arguments, "--out", str(out)]) == out
    record: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert record["benchmark"] == module.NAME
    assert record["command"].startswith(f"python benchmarks/{module.NAME}.py")
    assert record.keys() >= {"schema_version", "machine", "versions", "seed", "goals"}
    assert all({"at_most", "measured", "met"} <= goal.keys() for goal in record["goals"].values())
    return record


def test_every_distribution_has_the_percentiles_that_it_says(script: Any) -> None:
    verdicts = script("verdicts")
    rng = np.random.default_rng(0)
    assert len(verdicts.DISTRIBUTIONS) == 6
    for name, one in verdicts.DISTRIBUTIONS.items():
        drawn = one.draw(rng, 400, 500)
        assert drawn.shape == (400, 500)
        assert drawn.min() > 0, name
        for share in (0.5, 0.9, 0.99):
            value = one.quantile(share)
            assert one.share(value) == pytest.approx(share, abs=1e-9)
            # 200,000 samples; those of a row of the autoregressive process count as about a twentieth
            assert float((drawn <= value).mean()) == pytest.approx(share, abs=0.015), name


def test_autoregressive_neighbours_correlate_as_they_should(script: Any) -> None:
    verdicts = script("verdicts")
    drawn = np.log(verdicts.DISTRIBUTIONS["autocorrelated_0.9"].draw(np.random.default_rng(0), 50, 2000))
    assert np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1] == pytest.approx(0.9, abs=0.02)


def test_independent_verdicts_are_as_wrong_as_the_binomial_says(script: Any) -> None:
    verdicts = script("verdicts")
    rng = np.random.default_rng(3)
    for name in ("normal", "lognormal", "bimodal", "heavy_tail"):
        row = verdicts.errors(verdicts.DISTRIBUTIONS[name], percentile=90.0, n=44, trials=1000, rng=rng)
        # 44 of 44 within p90: 0.9^44 = 0.97 %; 1,000 trials of 1 % are over 2.1 % once in a thousand
        assert row["pass_at_the_percentile_expected"] == pytest.approx(0.9**44)
        assert max(row["wrong_pass"], row["wrong_fail"]) <= 0.021, name
        assert row["inconclusive_above"] > 0.5, name


def test_twenty_samples_never_give_a_p99(script: Any) -> None:
    verdicts = script("verdicts")
    found = verdicts.few_samples(trials=300, rng=np.random.default_rng(0))
    assert found == {"samples": 20, "trials": 300, "p99_values": 0, "p99_passes": 0}


def test_verdicts_write_a_record(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = script("verdicts")
    monkeypatch.setattr(verdicts, "SETTINGS", ((90.0, 44),))
    record = record_of(verdicts, tmp_path / "verdicts.json", "--trials", "100")
    assert set(record["independent"]) == {"normal", "lognormal", "bimodal", "heavy_tail"}
    assert set(record["dependent"]) == {"autocorrelated_0.5", "autocorrelated_0.9"}
    assert record["goals"]["p99_of_20_samples"]["met"]


def test_harness_costs_little_of_five_milliseconds(script: Any) -> None:
    overhead = script("overhead")
    found = overhead.inside_and_between(100)
    assert found["inside_ms"] >= 0
    assert found["between_ms"] > 0
    # the committed record holds the 1 %; a machine that others use may double it
    assert found["share"] <= 0.05


def test_busy_call_is_as_long_as_it_says(script: Any) -> None:
    overhead = script("overhead")
    taken: list[float] = []
    overhead.busy(2.0, taken)()
    assert len(taken) == 1
    assert taken[0] >= 2.0


def test_overhead_writes_a_record(script: Any, tmp_path: Path) -> None:
    overhead = script("overhead")
    record = record_of(overhead, tmp_path / "overhead.json", "--quick", "--layers", "1")
    assert record["bench"]["n"] == 10
    assert record["bench"]["ci95"][0] <= record["bench"]["ratio"] <= record["bench"]["ci95"][1]
    assert 0.5 < record["bench"]["ratio"] < 2.0
