"""The baseline gate: FAIL only where the whole interval is beyond what is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd._baseline import against, notes, ratio_of_percentiles, share_of
from edgekd._report_device_model import DeviceRow
from edgekd._statistics import block_percentiles
from edgekd.errors import UsageError
from edgekd.report import Latency, Report


def report(samples: list[float], *, rung: str = "onnx_int8", version: str = "1.30", **changes: object) -> Report:
    values = {
        "rung": rung,
        "target": "onnxruntime_x86",
        "device": "ssh:pi",
        "runtime": "onnxruntime",
        "provider_requested": "CPUExecutionProvider",
        "provider_used": "CPUExecutionProvider",
        "threads": 1,
        "batch": 1,
        "n": len(samples),
        "mean_ms": 1.0,
        "percentile": 90.0,
        "confidence": 0.99,
        "samples": rung,
    }
    device = DeviceRow(
        device="ssh:pi", machine="aarch64", system="Linux", runtime="onnxruntime", runtime_version=version
    )
    row = Latency(**{**values, **changes})  # type: ignore[arg-type]
    return Report(latency=[row], latency_samples={rung: samples}, devices=[device])


def noisy(scale: float, *, seed: int, n: int = 256) -> list[float]:
    return [float(value) for value in scale * np.random.default_rng(seed).lognormal(0.0, 0.02, n)]


def test_ratio_of_constant_samples_is_exact() -> None:
    assert ratio_of_percentiles([3.0] * 100, [2.0] * 100, 90).model_dump() == {
        "speedup": 1.5,
        "ci95": [1.5, 1.5],
        "n": 100,
    }


def test_interval_covers_the_true_ratio() -> None:
    held = 0
    for trial in range(60):
        samples = noisy(1.1, seed=trial, n=100), noisy(1.0, seed=1000 + trial, n=100)
        found = ratio_of_percentiles(*samples, 50, seed=trial)
        assert found.ci95 is not None
        held += found.ci95[0] <= 1.1 <= found.ci95[1]
    # 95 % of 60 are 57; 51 or fewer would happen once in 100 tries
    assert held >= 51


def test_same_speed_passes_and_a_tenth_slower_fails() -> None:
    before = report(noisy(1.0, seed=0))
    rows = against(report(noisy(1.0, seed=1)), before, max_regression=0.05)
    assert [(row.percentile, row.verdict) for row in rows] == [(50.0, "PASS"), (90.0, "PASS")]
    rows = against(report(noisy(1.1, seed=1)), before, max_regression=0.05)
    assert [row.verdict for row in rows] == ["FAIL", "FAIL"]
    assert rows[0].reason.startswith("onnx_int8 onnxruntime_x86 on ssh:pi with 1 thread at batch 1: p50 ")
    assert "at most +5.0% is allowed." in rows[0].reason


def test_interval_across_the_limit_decides_nothing() -> None:
    rng = np.random.default_rng(3)
    wide = [float(value) for value in rng.lognormal(0.0, 1.0, 64)]
    rows = against(report(wide), report(wide), max_regression=0.05)
    assert {row.verdict for row in rows} == {"INCONCLUSIVE"}
    assert rows[0].reason.endswith("Raise bench.queries, or allow more.")


def test_percentile_that_either_sample_cannot_support_is_not_compared() -> None:
    p50, p90 = against(report(noisy(1.0, seed=0)), report(noisy(1.0, seed=1, n=20)), max_regression=0.05)
    assert p50.verdict == "PASS"
    assert p90.verdict == "INCONCLUSIVE"
    assert p90.reason.endswith("p90 needs 64 queries, there are 20 and 256.")
    assert p90.ratio is None


def test_lost_row_is_named_and_new_row_is_a_note() -> None:
    now, before = report(noisy(1.0, seed=0), rung="mixed"), report(noisy(1.0, seed=1))
    (row,) = against(now, before, max_regression=0.05)
    assert row.verdict == "INCONCLUSIVE"
    assert "onnx_int8 onnxruntime_x86 on ssh:pi with 1 thread at batch 1: is in the baseline" in row.reason
    assert notes(now, before) == ["Not in the baseline: mixed onnxruntime_x86 on ssh:pi with 1 thread at batch 1."]


def test_other_threads_are_another_row() -> None:
    rows = against(report(noisy(1.0, seed=0), threads=2), report(noisy(1.0, seed=1)), max_regression=0.05)
    assert [row.verdict for row in rows] == ["INCONCLUSIVE"]


def test_lost_sweep_and_emulated_rows_stop_nothing() -> None:
    now, before = report(noisy(1.0, seed=0)), report(noisy(1.0, seed=1))
    swept = before.latency[0].model_copy(update={"threads": 2, "sweep": True})
    before = before.model_copy(update={"latency": [*before.latency, swept]})
    assert {row.verdict for row in against(now, before, max_regression=0.05)} == {"PASS"}
    assert notes(now, before) == [
        "In the baseline, not measured now: onnx_int8 onnxruntime_x86 on ssh:pi with 2 threads at batch 1."
    ]
    emulated = report(noisy(9.0, seed=0), is_latency=False)
    (row,) = against(emulated, emulated, max_regression=0.05)
    assert (row.verdict, row.ratio) == ("INCONCLUSIVE", None)
    assert "nothing was compared" in row.reason


def test_another_runtime_is_named() -> None:
    now, before = report(noisy(1.0, seed=0), version="1.31"), report(noisy(1.0, seed=1))
    assert notes(now, before) == ["The baseline was measured with another onnxruntime on ssh:pi: 1.30, now 1.31."]


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.1", 0.1), (" 12.5% ", 0.125), ("0", 0.0)])
def test_shares(text: str, share: float) -> None:
    assert share_of(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["five", "-1%", "nan", "inf", ""])
def test_no_share(text: str) -> None:
    with pytest.raises(UsageError, match=r"--max-regression must be a share such as 5% or 0\.05"):
        share_of(text)


def test_block_percentiles_resample_and_agree_with_numpy() -> None:
    samples = list(np.random.default_rng(0).normal(10.0, 1.0, 1000))
    drawn = block_percentiles(samples, 90, seed=1)
    assert drawn.shape == (2000,)
    assert set(drawn) <= set(samples)  # nearest rank: always a value that was measured
    assert np.median(drawn) == pytest.approx(np.quantile(samples, 0.9), abs=0.05)
    assert block_percentiles([1.0] * 50_000, 50).shape == (800,)
