"""The latency protocol: with a clock that the test moves, and with real ONNX Runtime sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import GateFailed, UsageError
from edgekd.measure import (
    Latency,
    LatencyRow,
    Protocol,
    int8_vs_float_row,
    latency_of,
    latency_row,
    measure,
)
from edgekd.spec import TensorSpec
from edgekd.targets._onnxruntime import OnnxRuntimeRunner

FEEDS = {"x": np.zeros((1, 3), np.float32)}


class Clock:
    """A clock that only its owner moves."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class ScriptedRunner:
    """Takes the time that `latency_ms` gives for the k-th call, and says who ran."""

    inputs: list[TensorSpec] = []  # noqa: RUF012
    outputs: list[TensorSpec] = []  # noqa: RUF012

    def __init__(self, name: str, clock: Clock, latency_ms: Callable[[int], float], calls: list[str]) -> None:
        self.provider_requested = self.provider_used = "CPUExecutionProvider"
        self._name, self._clock, self._latency_ms, self._calls = name, clock, latency_ms, calls
        self.count = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._calls.append(self._name)
        self._clock.now_ns += round(self._latency_ms(self.count) * 1e6)
        self.count += 1
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def scripted(*latencies: Callable[[int], float]) -> tuple[dict[str, ScriptedRunner], Clock, list[str]]:
    clock = Clock()
    calls: list[str] = []
    names = "abcd"[: len(latencies)]
    runners = {name: ScriptedRunner(name, clock, one, calls) for name, one in zip(names, latencies, strict=True)}
    return runners, clock, calls


def test_models_take_turns_when_several_are_measured() -> None:
    runners, clock, calls = scripted(lambda k: 6.0, lambda k: 2.0)
    found = measure(runners, FEEDS, protocol=Protocol(queries=15), clock_ns=clock)
    assert "".join(calls) == "ab" * (20 + 15)
    assert [found.latencies[name].n for name in "ab"] == [15, 15]
    assert found.latencies["a"].samples_ms == [6.0] * 15
    # a begins every 8 ms, b 6 ms after it
    assert found.latencies["a"].started_ms[:3] == [0.0, 8.0, 16.0]
    assert found.latencies["b"].started_ms[:3] == [6.0, 14.0, 22.0]
    assert found.ratio("a", "b").speedup == pytest.approx(3.0)


def test_every_sample_is_kept_when_some_are_far_out() -> None:
    runners, clock, _ = scripted(lambda k: 900.0 if k == 25 else 5.0)
    latency = measure(runners, FEEDS, protocol=Protocol(queries=64), clock_ns=clock).latencies["a"]
    assert latency.max_ms == 900.0
    assert latency.mean_ms == pytest.approx((63 * 5 + 900) / 64)
    assert sorted(latency.samples_ms) == [5.0] * 63 + [900.0]


def test_warm_up_goes_on_when_the_latency_still_falls() -> None:
    # halves until call 40, constant from there: the last window that differs ends at call 49
    runners, clock, _ = scripted(lambda k: 1.0 + max(0, 40 - k))
    latency = measure(runners, FEEDS, protocol=Protocol(queries=5), clock_ns=clock).latencies["a"]
    assert latency.steady
    assert 50 <= latency.warmup <= 60
    assert set(latency.samples_ms) == {1.0}


def test_warm_up_ends_when_time_is_up() -> None:
    runners, clock, _ = scripted(lambda k: 100.0 * (k + 1))
    protocol = Protocol(queries=1, warmup_max_seconds=1.0)
    latency = measure(runners, FEEDS, protocol=protocol, clock_ns=clock).latencies["a"]
    assert not latency.steady
    assert latency.warmup == 4  # 100 + 200 + 300 + 400 ms


def test_timing_ends_when_time_is_up() -> None:
    runners, clock, _ = scripted(lambda k: 300.0)
    protocol = Protocol(queries=100, max_seconds=1.0)
    assert measure(runners, FEEDS, protocol=protocol, clock_ns=clock).latencies["a"].n == 4


def test_progress_is_told_when_rounds_end() -> None:
    runners, clock, _ = scripted(lambda k: 1.0)
    told: list[tuple[int, int]] = []
    measure(runners, FEEDS, protocol=Protocol(queries=3), clock_ns=clock, progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_measurement_fails_when_another_provider_ran() -> None:
    runners, clock, calls = scripted(lambda k: 1.0)
    runners["a"].provider_requested = "CUDAExecutionProvider"
    with pytest.raises(GateFailed, match="'a' was to run on CUDAExecutionProvider and runs on CPUExecutionProvider"):
        measure(runners, FEEDS, protocol=Protocol(), clock_ns=clock)
    assert calls == []


def test_summary_is_right_when_worked_by_hand() -> None:
    latency = latency_of([float(value) for value in range(1, 101)], protocol=Protocol(budget_ms=120.0))
    assert (latency.n, latency.mean_ms, latency.min_ms, latency.max_ms) == (100, 50.5, 1.0, 100.0)
    assert latency.std_ms == pytest.approx(29.011492)
    assert (latency.p50_ms, latency.p90_ms) == (50.0, 90.0)
    assert (latency.p95_ms, latency.p99_ms) == (None, None)  # 130 and 662 are needed
    assert latency.drift == pytest.approx(95 / 5 - 1)  # medians of 91..100 and 1..10 by nearest rank
    # 100 queries allow 3 over: binomial(100, 0.1) has P(X <= 3) = 0.0078 and P(X <= 4) = 0.0237
    assert (latency.estimate_ms, latency.upper_ms) == (97.0, 97.0)
    assert latency.verdict == "PASS"


@pytest.mark.parametrize(
    ("samples", "verdict", "reason"),
    [
        ([3.0] * 44, "PASS", "44 runs, 0 over 5 ms: with 99 % confidence p90 is at most 3 ms."),
        ([9.0] * 2, "FAIL", "2 runs, 2 over 5 ms: with 99 % confidence p90 is at least 9 ms."),
        ([3.0] * 20, "INCONCLUSIVE", "20 runs, 0 over 5 ms: p90 needs 44 runs. Raise bench.queries."),
        ([3.0] * 49 + [9.0], "INCONCLUSIVE", "50 runs, 1 over 5 ms: that many over need 64 runs to pass p90."),
    ],
)
def test_reason_says_why_when_a_verdict_is_given(samples: list[float], verdict: str, reason: str) -> None:
    latency = latency_of(samples, protocol=Protocol(budget_ms=5.0))
    assert latency.verdict == verdict
    assert latency.reason.startswith(reason)


def test_row_has_the_fields_of_the_report_when_made() -> None:
    latency = latency_of([4.0] * 70, protocol=Protocol(), provider_requested="P", provider_used="P")
    row = latency_row(
        latency, rung="onnx_int8", target="onnxruntime_x86", device="cpu", runtime="onnxruntime", threads=1, batch=1
    )
    assert row.model_dump() == {
        "rung": "onnx_int8",
        "target": "onnxruntime_x86",
        "device": "cpu",
        "runtime": "onnxruntime",
        "provider_requested": "P",
        "provider_used": "P",
        "threads": 1,
        "batch": 1,
        "n": 70,
        "mean_ms": 4.0,
        "p50_ms": 4.0,
        "p90_ms": 4.0,
        "p95_ms": None,
        "p99_ms": None,
        "cold_ms": None,
        "budget_ms": 500.0,
        "percentile": 90.0,
        "confidence": 0.99,
        "verdict": "PASS",
    }
    assert set(LatencyRow.model_fields) - set(Latency.model_fields) == {
        "rung",
        "target",
        "device",
        "runtime",
        "threads",
        "batch",
        "cold_ms",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": 0}, "queries=0"),
        ({"warmup_min": 15}, "warmup_min at least twice the window"),
        ({"budget_ms": 0.0}, "must be > 0"),
        ({"percentile": 100.0}, "percentile must be between 0 and 100"),
    ],
)
def test_protocol_is_refused_when_it_makes_no_sense(fields: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Protocol(**fields)  # type: ignore[arg-type]


def test_nothing_is_measured_when_nothing_is_given() -> None:
    with pytest.raises(UsageError, match="at least one runner"):
        measure({}, FEEDS, protocol=Protocol())
    with pytest.raises(UsageError, match="at least one sample"):
        latency_of([], protocol=Protocol())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two real models on input x (1, 3): the large one multiplies 1024 x 1024 matrices."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for name, size in (("small", 8), ("large", 1024)):
        rng = np.random.default_rng(0)
        weights = {
            "w1": rng.standard_normal((3, size)),
            "w2": rng.standard_normal((size, size)),
            "w3": rng.standard_normal((size, size)),
        }
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "w1"], ["a"]),
                helper.make_node("MatMul", ["a", "w2"], ["b"]),
                helper.make_node("MatMul", ["b", "w3"], ["y"]),
            ],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", size])],
            [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()],
        )
        paths[name] = folder / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), paths[name])
    return paths


def test_small_model_is_faster_when_real_sessions_are_measured(models: dict[str, Path]) -> None:
    with OnnxRuntimeRunner(models["large"]) as large, OnnxRuntimeRunner(models["small"]) as small:
        found = measure({"large": large, "small": small}, FEEDS, protocol=Protocol(queries=64, max_seconds=5.0))
    ratio = found.ratio("large", "small")
    assert ratio.ci95 is not None
    assert ratio.ci95[0] > 1.0
    assert found.latencies["small"].verdict == "PASS"
    row = int8_vs_float_row(ratio, target="onnxruntime_x86", device="cpu", slow_ops=["Conv 'c': 3 us, 1.0%"])
    assert row.speedup == ratio.speedup
