"""The protocol over a connection: real processes and timings, with a device's words changed where a test needs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from bench.places import Altered
from onnx import numpy_helper
from qdq_graphs import Graph

from edgekd._gates import gates
from edgekd.agent.processor import allowed_cores
from edgekd.devices._place import About, Measured, NodePlacement, Reading
from edgekd.errors import BackendMissing, UsageError
from edgekd.pipeline._bench_models import PlacedModel, placed_file
from edgekd.pipeline._bench_place import bench_on
from edgekd.pipeline._bench_rows import bench_fields, bench_notes
from edgekd.pipeline._verdict import verdict_of
from edgekd.pipeline._watcher import Silent
from edgekd.recipe import BenchSettings
from edgekd.report import Report, from_json, render_html, render_markdown, render_terminal, to_json
from edgekd.spec import Preprocessing

ONE_CORE = "needs two cores that this process may use"
TWO_CORES = pytest.mark.skipif(len(allowed_cores() or (0, 1)) < 2, reason=ONE_CORE)
FEEDS = {"x": np.zeros((1, 8, 8, 8), np.float32)}
QUICK = BenchSettings(queries=64, max_seconds=3.0, cold_repeats=1)
PREPROCESSING = Preprocessing(size=[8, 8], channels=8, mean=[0.5] * 8, std=[0.25] * 8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[PlacedModel]:
    """Two convolutions as float and as int8."""
    folder = tmp_path_factory.mktemp("models")
    graph = Graph()
    out = graph.pair(graph.conv(graph.pair("x", zero=np.uint8(128))), zero=np.uint8(128))
    onnx.save(graph.model(graph.pair(graph.conv(out), zero=np.uint8(128))), folder / "int8.onnx")
    graph, out = Graph(), "x"
    for _ in range(2):
        weights = graph.constant(graph.rng.normal(size=(8, 8, 3, 3)).astype(np.float32))
        out = graph.node("Conv", out, weights, graph.bias(8), kernel_shape=[3, 3], pads=[1] * 4)
    onnx.save(graph.model(out), folder / "float.onnx")
    target = "onnxruntime_x86"
    return [
        placed_file("onnx_float", target, folder / "float.onnx"),
        placed_file("onnx_int8", target, folder / "int8.onnx"),
    ]


def measured(place: Altered, models: list[PlacedModel], settings: BenchSettings = QUICK, **changes: object) -> Report:
    asked = {"preprocessing": None, "watcher": Silent(), **changes}
    with place:
        record = bench_on(place, models, FEEDS, settings, **asked)  # type: ignore[arg-type]
    report = Report(
        recipe={"bench": settings.model_dump(mode="json")},
        notes=bench_notes(record),
        **bench_fields({"onnxruntime_x86": record}),
    )
    return report.model_copy(update={"verdict": verdict_of(settings, report)})


@pytest.fixture(scope="module")
def whole(models: list[PlacedModel]) -> Report:
    """Everything that can be asked for, once."""
    if len(allowed_cores() or (0, 1)) < 2:
        pytest.skip(ONE_CORE)
    settings = QUICK.model_copy(update={"sustained_seconds": 1.0, "sweep_threads": [1, 2]})
    return measured(Altered(), models, settings, preprocessing=PREPROCESSING)


def test_every_part_is_measured(whole: Report) -> None:
    assert [(row.rung, row.threads, row.sweep) for row in whole.latency] == [
        ("onnx_float", 1, False),
        ("onnx_int8", 1, False),
        ("onnx_float", 2, True),
        ("onnx_int8", 2, True),
    ]
    assert [row.rung for row in whole.cold] == ["onnx_float", "onnx_int8"]
    assert all(row.process_ms is not None and row.process_ms > row.first_ms > 0 for row in whole.cold)
    assert all(row.peak_memory_mib > row.baseline_memory_mib > 0 for row in whole.cold)
    assert [row.rung for row in whole.sustained] == ["onnx_int8"]
    assert 0.9 <= whole.sustained[0].seconds <= 1.5
    assert [row.source for row in whole.energy] == ["not available"] * 2 or all(row.energy_mj for row in whole.energy)
    assert [row.passed for row in whole.placement] == [True, True]
    assert len(whole.worth) == 1
    assert whole.worth[0].float32_speedup == pytest.approx(whole.int8_vs_float[0].speedup)
    assert [row.device for row in whole.devices] == ["cpu"]
    assert whole.verdict is not None


def test_end_to_end_is_the_sum_of_its_parts(whole: Report) -> None:
    row = whole.end_to_end[1]
    assert (row.rung, row.n, row.verdict, row.budget_ms) == ("onnx_int8", 64, None, None)
    samples = whole.latency_samples[str(row.samples)]
    assert len(samples) == 64
    assert min(samples) > row.preprocess_p50_ms / 10
    parts = row.preprocess_p50_ms + row.inference_p50_ms + row.postprocess_p50_ms
    assert row.p50_ms == pytest.approx(parts, rel=0.5)


def test_every_row_names_its_samples(whole: Report) -> None:
    for row in whole.latency:
        assert len(whole.latency_samples[str(row.samples)]) == row.n


def test_report_survives_json_and_every_form_shows_the_device(whole: Report) -> None:
    assert from_json(to_json(whole)) == whole
    page, text = render_html(whole), render_markdown(whole)
    for title in (
        "What was measured on",
        "End to end",
        "Numbers of threads",
        "Sustained",
        "Placement",
        "Cold start by part",
    ):
        assert title in page
        assert f"## {title}" in text
    assert page.count('aria-label="Latency of onnx_int8 on cpu over') == 1
    assert "not available" in text or whole.energy[0].energy_mj
    assert render_terminal(whole)


def test_sweep_is_no_part_of_the_latency_charts(whole: Report) -> None:
    page = render_html(whole)
    assert "onnx_int8, 2 threads" not in page
    assert "onnx_int8, end to end" not in page


def test_budget_can_be_about_end_to_end(models: list[PlacedModel]) -> None:
    settings = QUICK.model_copy(update={"budget_is": "end_to_end", "budget_ms": 1e-6})
    report = measured(Altered(), models[1:], settings, preprocessing=PREPROCESSING)
    assert [row.verdict for row in report.latency] == [None]
    assert [row.verdict for row in report.end_to_end] == ["FAIL"]
    assert report.verdict is not None
    assert (report.verdict.overall, report.verdict.budget_is) == ("FAIL", "end_to_end")
    assert "on cpu end to end: 64 runs, 64 over 1e-06 ms" in report.verdict.reasons[0]
    samples = sorted(report.latency_samples[str(report.end_to_end[0].samples)])
    assert report.verdict.measured_ms == samples[57]  # the 58th of 64 is p90 by nearest rank


def test_end_to_end_budget_needs_a_preprocessing(models: list[PlacedModel]) -> None:
    settings = QUICK.model_copy(update={"budget_is": "end_to_end"})
    with pytest.raises(UsageError, match=r"the preprocessing is not known: an ONNX file alone does not tell it"):
        measured(Altered(), models, settings)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"threads": 4096}, r"bench\.threads asks for 4096 threads; cpu has \d+ cores"),
        ({"sweep_threads": [1, 4096]}, r"bench\.sweep_threads asks for 4096 threads; cpu has \d+ cores"),
        pytest.param({"threads": 2, "cores": [0]}, r"bench\.cores names 1 cores for 2 threads", marks=TWO_CORES),
        ({"cores": [4095]}, r"4095"),
    ],
)
def test_more_than_the_device_has_is_refused(models: list[PlacedModel], changes: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        measured(Altered(), models, QUICK.model_copy(update=changes))


def test_provider_that_is_not_there_is_refused(models: list[PlacedModel]) -> None:
    with pytest.raises(BackendMissing, match="CUDAExecutionProvider"):
        measured(Altered(), models, QUICK.model_copy(update={"provider": "CUDAExecutionProvider"}))


def held_back(found: Measured) -> Measured:
    """A device that said in the middle that it had too little power."""
    middle = Reading(at_ms=1.0, throttled=["under-voltage"])
    return found.model_copy(update={"readings": [found.readings[0], middle, *found.readings[1:]]})


def test_throttled_run_is_invalid_and_not_slow(models: list[PlacedModel]) -> None:
    report = measured(Altered(measured=held_back), models[1:])
    assert [row.verdict for row in report.latency] == ["INVALID"]
    assert report.verdict is not None
    assert report.verdict.overall == "INVALID"
    assert "The device was held back (under-voltage), first seen 0 s into the run" in report.verdict.reasons[0]
    assert "Cool it, power it better" in report.verdict.reasons[0]
    assert report.latency_samples["onnx_int8"]  # nothing is thrown away


def emulated(about: About) -> About:
    return about.model_copy(update={"emulated": True, "machine": "aarch64"})


def test_times_of_an_emulated_device_are_kept_and_marked(models: list[PlacedModel]) -> None:
    settings = QUICK.model_copy(update={"sustained_seconds": 0.5, "budget_ms": 1e-6})
    place = Altered(name="emulated_arm64", about=emulated)
    report = measured(place, models, settings, preprocessing=PREPROCESSING)
    assert all(not row.is_latency and row.verdict is None for row in [*report.latency, *report.end_to_end])
    assert not any(row.is_latency for row in [*report.sustained, *report.cold])
    assert (report.int8_vs_float, report.worth, report.mobile, report.operators) == ([], [], [], [])
    assert report.latency_samples["onnx_int8"]
    assert report.verdict is None
    assert report.notes[-1] == "emulated_arm64 is emulated: its answers count, its times are no latency."
    page = render_html(report)
    assert "<svg" not in page
    assert "not a latency" in page


def fallen_back(nodes: list[NodePlacement]) -> list[NodePlacement]:
    return [nodes[0].model_copy(update={"provider": "AzureExecutionProvider"}), *nodes[1:]]


@pytest.mark.parametrize("allowed", [False, True])
def test_fallback_fails_unless_allowed(models: list[PlacedModel], allowed: bool) -> None:
    report = measured(Altered(nodes=fallen_back), models[1:], QUICK.model_copy(update={"allow_fallback": allowed}))
    (gate,) = [one for one in gates(report) if one.name == "placement"]
    assert gate.outcome == ("PASS" if allowed else "FAIL")
    assert "1 node did not run on CPUExecutionProvider but on AzureExecutionProvider" in gate.reason


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "tensorrt"])
def test_what_a_device_runs_on_is_what_nodes_must_run_on(models: list[PlacedModel], provider: str) -> None:
    report = measured(Altered(name="cuda", provider=provider), models[1:])
    (gate,) = [one for one in gates(report) if one.name == "placement"]
    assert gate.outcome == "PASS"
    assert f"nodes ran on {provider}" in gate.reason
    assert [row.provider_used for row in report.latency] == [provider]
    # a cold start of an engine would be that of a process without ONNX Runtime
    assert bool(report.cold) == (provider != "tensorrt")
    assert any("no cold start was measured" in note for note in report.notes) == (provider == "tensorrt")
    render_html(report)


def test_cores_are_those_that_were_asked_for(models: list[PlacedModel]) -> None:
    last = max(allowed_cores() or {0})
    place = Altered()
    report = measured(place, models[1:], QUICK.model_copy(update={"cores": [last]}))
    assert [row.cores for row in report.latency] == [[last]]
    assert {tuple(one.cores or ()) for one in place.sessions} == {(last,)}


def test_file_with_weights_beside_it_takes_them_along(models: list[PlacedModel], tmp_path: Path) -> None:
    model = onnx.load(models[0].path)
    weights = sum(numpy_helper.to_array(one).nbytes for one in model.graph.initializer)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    placed = placed_file("onnx_float", "onnxruntime_x86", tmp_path / "m.onnx")
    assert sorted(placed.files) == ["onnx_float/m.bin", "onnx_float/m.onnx"]
    assert placed.size_bytes > weights > 0
    assert [row.n for row in measured(Altered(), [placed]).latency] == [64]
