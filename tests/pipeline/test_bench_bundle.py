"""A run's bundle measured on a device: the right models, golden vectors first, the bundle's own budget, CI's files."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from bench.places import Altered
from pipeline.conftest import TARGET

from edgekd import pipeline
from edgekd.bundle import Bundle, open_bundle
from edgekd.cli.main import main
from edgekd.devices._place import About
from edgekd.errors import ArtifactError, BackendMissing, UsageError
from edgekd.pipeline._bench_bundle import bench_bundle_on, chosen_models
from edgekd.recipe import BenchSettings
from edgekd.report import Report, from_json

QUICK = BenchSettings(queries=64, max_seconds=3.0, cold_repeats=1)


@pytest.fixture(scope="module")
def packed(finished: pipeline.RunResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run as a bundle."""
    out = tmp_path_factory.mktemp("bundle") / "small.zip"
    pipeline.pack(finished.out, out)
    return out


@pytest.fixture(scope="module")
def report(packed: Path) -> Report:
    """It, measured on this machine."""
    return pipeline.bench_bundle(packed, QUICK)


def test_bundle_is_measured_after_its_golden_vectors(report: Report) -> None:
    assert [(row.rung, row.device, row.n) for row in report.latency] == [
        ("onnx_float", "cpu", 64),
        ("onnx_int8", "cpu", 64),
    ]
    assert [(row.rung, row.passed) for row in report.golden] == [("onnx_int8", True), ("onnx_float", True)]
    assert [row.coverage for row in report.fusion] == [1.0]
    assert [row.rung for row in report.end_to_end] == ["onnx_float", "onnx_int8"]
    assert report.verdict is not None
    assert report.verdict.overall == "PASS"


def test_budget_is_the_bundles_unless_it_is_given(packed: Path, report: Report, finished: pipeline.RunResult) -> None:
    assert report.verdict is not None
    assert report.verdict.budget_ms == finished.report.recipe["bench"]["budget_ms"]
    other = pipeline.bench_bundle(packed, QUICK.model_copy(update={"budget_ms": 1e-6}))
    assert other.verdict is not None
    # model_copy tells that budget_ms was set
    assert (other.verdict.budget_ms, other.verdict.overall) == (1e-6, "FAIL")


def about(**changes: object) -> About:
    return About(**{"machine": "x86_64", "system": "Linux", "runtime_version": "1", **changes})  # type: ignore[arg-type]


def with_machines(bundle: Bundle, machines: list[str]) -> Bundle:
    """The bundle with its int8 model meant for other processors."""
    models = [
        one.model_copy(update={"machines": machines}) if one.rung == "onnx_int8" else one
        for one in bundle.manifest.models
    ]
    manifest = bundle.manifest.model_copy(update={"models": models})
    return Bundle(bundle.path, bundle.folder, manifest, bundle.signed)


def test_models_are_those_of_the_devices_processor(packed: Path) -> None:
    with open_bundle(packed) as bundle:
        entries, notes = chosen_models(bundle, about(), "cpu")
        assert [(one.rung, one.target) for one in entries] == [("onnx_float", TARGET), ("onnx_int8", TARGET)]
        assert notes == []
        entries, notes = chosen_models(bundle, about(machine="aarch64"), "ssh:pi")
        assert [one.rung for one in entries] == ["onnx_float"]  # the int8 file is for x86 only
        assert notes == [f"The bundle has no model made for aarch64: that of {TARGET} was measured on ssh:pi."]
        anywhere = with_machines(bundle, [])
        assert len(chosen_models(anywhere, about(machine="riscv64"), "ssh:board")[0]) == 2
        for_others = bundle.manifest.models[0].model_copy(update={"machines": ["armv7l"]})
        alone = Bundle(
            bundle.path, bundle.folder, bundle.manifest.model_copy(update={"models": [for_others]}), bundle.signed
        )
        with pytest.raises(BackendMissing, match=r"No model of .*small\.zip runs on cpu: .* meant for armv7l"):
            chosen_models(alone, about(), "cpu")


def test_wrong_answer_fails_by_name(packed: Path) -> None:
    place = Altered()
    answers = place.run

    def off(model: str, feeds: object, session: object) -> list[dict[str, np.ndarray]]:
        return [{name: value + 100.0 for name, value in one.items()} for one in answers(model, feeds, session)]  # type: ignore[arg-type]

    place.run = off  # type: ignore[method-assign,assignment]
    with open_bundle(packed) as bundle, place:
        found = bench_bundle_on(bundle, place, QUICK)
    assert [row.passed for row in found.golden] == [False, False]
    assert found.verdict is not None
    assert found.verdict.overall == "FAIL"
    assert "int8.onnx: output 'logits' differs by 100" in found.verdict.reasons[0]


def test_batch_that_the_model_does_not_take_is_refused(packed: Path) -> None:
    with open_bundle(packed) as bundle:
        port = bundle.manifest.models[0].inputs[0]
        fixed = port.model_copy(update={"shape": [1, *port.shape[1:]]})
        models = [one.model_copy(update={"inputs": [fixed]}) for one in bundle.manifest.models]
        bundle = Bundle(bundle.path, bundle.folder, bundle.manifest.model_copy(update={"models": models}), False)
        with Altered() as place, pytest.raises(UsageError, match=r"takes a batch of 1, bench\.batch is 8"):
            bench_bundle_on(bundle, place, QUICK.model_copy(update={"batch": 8}))


def test_earlier_report_gates_and_ci_files_say_so(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", str(packed), "--queries", "64", "-q"]
    assert main([*command, "--json"]) == 0
    earlier = from_json(capsys.readouterr().out)
    # an earlier device a thousand times as fast: no load of this machine makes that undecided
    fast = {name: [value / 1000 for value in values] for name, values in earlier.latency_samples.items()}
    baseline = tmp_path / "report.json"
    baseline.write_text(earlier.model_copy(update={"latency_samples": fast}).model_dump_json(), encoding="utf-8")
    files = ["--junit", str(tmp_path / "j.xml"), "--markdown", str(tmp_path / "m.md")]
    assert main([*command, "--json", "--baseline", str(baseline), "--max-regression", "50%", *files]) == 1
    after = json.loads(capsys.readouterr().out)
    assert after["verdict"]["overall"] == "FAIL"
    assert {row["verdict"] for row in after["baseline"]} >= {"FAIL"}
    root = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert int(root[0].attrib["failures"]) >= 1
    assert "❌ **FAIL**" in (tmp_path / "m.md").read_text(encoding="utf-8")


def test_recipe_takes_the_same_options(finished: pipeline.RunResult, tmp_path: Path) -> None:
    report = finished.report
    # a recipe is measured over the same connection, with its own preprocessing
    assert [row.device for row in report.devices] == ["cpu"]
    assert [row.rung for row in report.end_to_end] == ["onnx_float", "onnx_int8"]
    assert report.latency_samples.keys() >= {"onnx_int8", "onnx_int8, end to end"}
    # a machine that does other work beside this leaves a p90 that decides nothing, so the samples are steady ones
    steady = report.model_copy(update={"latency_samples": dict.fromkeys(report.latency_samples, [2.0, 2.1] * 64)})
    baseline = tmp_path / "report.json"
    baseline.write_text(steady.model_dump_json(), encoding="utf-8")
    same = pipeline.compare_with(steady, baseline, max_regression=0.1)
    assert [(row.what, row.verdict) for row in same.baseline] == [
        (what, "PASS") for what in ("inference", "end_to_end") for _ in range(4)
    ]
    assert pipeline.exit_code_of(same) == 0


def test_baseline_that_is_no_report_is_3(finished: pipeline.RunResult, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"The baseline .*none\.json cannot be read: No such file or directory"):
        pipeline.compare_with(finished.report, tmp_path / "none.json", max_regression=0.05)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ArtifactError, match="schema_version None"):
        pipeline.compare_with(finished.report, tmp_path / "bad.json", max_regression=0.05)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-regression", "5%"], "--max-regression belongs to --baseline"),
        (["--sweep-threads", "1,x"], "--sweep-threads takes whole numbers with commas between"),
        (["--device-option", "port"], "--device-option must be KEY=VALUE, got port"),
        (["--baseline", "b.json", "--max-regression", "much"], "--max-regression must be a share"),
        (["--target", "xnnpack"], "--target is for ONNX files; a bundle's models have theirs"),
        (["--budget-is", "both"], "--budget-is: input should be 'inference' or 'end_to_end'"),
        (["--sustained", "-1"], "--sustained"),
        (["--device-option", "nothing=1"], "nothing"),
    ],
)
def test_wrong_options_are_named(
    packed: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(packed), *options]) == 2
    assert told in capsys.readouterr().err
