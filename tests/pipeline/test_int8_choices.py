"""What a recipe chooses about int8: layers in float, several targets from one training, a drop that must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import pipeline
from edgekd.errors import UsageError
from edgekd.recipe import parse_recipe

BASE: dict[str, Any] = {
    "name": "choices",
    "compute": {"threads": 1},
    "data": {"name": "digits"},
    "teacher": {"model": "tiny", "train": {"epochs": 1}},
    "student": {"model": "resnet", "depth": 8, "width": 0.5},
    "distill": {"baseline": False, "train": {"epochs": 2}},
    "quantize": {"calibration_samples": 64, "epochs": 1},
    "bench": {"queries": 70, "max_seconds": 3.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: the float stages are made once."""
    return tmp_path_factory.mktemp("choices") / "run"


def run(folder: Path, *, until: str = "report", **changes: dict[str, Any]) -> dict[str, Any]:
    values = {**BASE, **{key: {**BASE.get(key, {}), **change} for key, change in changes.items()}}
    done = pipeline.run(parse_recipe(values), out=folder, until=until, overwrite=True)  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads((done.out / "report.json").read_text())
    return found


def manifest(folder: Path, stage: str) -> dict[str, Any]:
    (path,) = folder.glob(f"{stage}-????????")
    found: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return found


def logits(folder: Path, stage: str) -> np.ndarray:
    (path,) = folder.glob(f"{stage}-????????")
    with np.load(path / "predictions.npz") as arrays:
        found: np.ndarray = arrays["logits"]
    return found


@pytest.mark.slow
def test_one_training_serves_every_target_whose_grid_holds_its_codes(folder: Path) -> None:
    report = run(
        folder, until="export", export={"targets": ["onnxruntime_x86", "onnxruntime_arm"], "min_agreement": 0.99}
    )
    made = manifest(folder, "int8-onnxruntime_arm")["metrics"]
    assert made["plan"]["made_by"] == "re-emitted"
    assert made["plan"]["made_for"] == "onnxruntime_x86"
    assert made["calibrated_here"] == []
    np.testing.assert_array_equal(logits(folder, "int8-onnxruntime_arm"), logits(folder, "int8-onnxruntime_x86"))
    assert "onnxruntime_arm: re-emitted from the codes that were trained for onnxruntime_x86." in report["notes"]
    assert {row["target"]: row["coverage"] for row in report["fusion"]} == {
        "onnxruntime_x86": 1.0,
        "onnxruntime_arm": 1.0,
    }


def test_another_grid_takes_the_weights_and_calibrates_when_asked(folder: Path) -> None:
    changes = {"export": {"targets": ["onnxruntime_x86", "tensorrt"]}, "quantize": {"other_grids": "recalibrate"}}
    report = run(folder, until="quantize", **changes)
    plan = manifest(folder, "int8-tensorrt")["metrics"]["plan"]
    assert plan["made_by"] == "re-calibrated"
    assert "tensorrt: the weights were trained for onnxruntime_x86, the ranges calibrated here." in report["notes"]


@pytest.mark.slow
def test_layers_named_in_the_recipe_stay_float_and_are_listed_as_chosen(folder: Path) -> None:
    report = run(folder, quantize={"mode": "ptq", "float_layers": ["layer2", "conv1"]})
    (fusion,) = report["fusion"]
    assert fusion["coverage"] == 1.0
    assert fusion["float_islands"] == []
    assert set(fusion["by_choice"]) >= {"conv1", "layer2.0.conv1", "layer2.0.conv2"}
    assert report["verdict"]["overall"] == "PASS"


def test_a_layer_that_does_not_exist_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"quantize.float_layers: no layer 'layer9'. Valid names: avgpool, conv1"):
        run(tmp_path / "run", quantize={"float_layers": ["layer9"]})
    assert not list((tmp_path / "run").glob("teacher-*"))


@pytest.mark.slow
def test_a_drop_that_holds_puts_nothing_back(folder: Path) -> None:
    report = run(folder, until="quantize", quantize={"mode": "ptq", "max_drop": 0.5})
    assert manifest(folder, "mixed-onnxruntime_x86")["metrics"]["float_layers"] == []
    assert "mixed" in {row["rung"] for row in report["ladder"]}
    assert any("int8 holds without any layer in float" in note for note in report["notes"])
    assert len(report["sensitivity"]["onnxruntime_x86"]["groups"]) >= 10
    assert report["mixed"]["onnxruntime_x86"]["path"][0]["action"] == "int8"


@pytest.mark.slow
def test_a_placement_search_is_cached_and_its_choice_shipped(folder: Path) -> None:
    changes = {"quantize": {"mode": "ptq", "placement_search": True}}
    first = run(folder, **changes)
    second = run(folder, **changes)
    stage = {row["stage"]: row["cached"] for row in second["stages"]}
    assert stage["placement-onnxruntime_x86"] is True
    assert any("placement search chose" in note for note in first["notes"])
    assert all(row["coverage"] == 1.0 for row in first["fusion"])


def test_another_calibrator_uses_what_was_seen(folder: Path) -> None:
    changes: dict[str, Any] = {"mode": "ptq", "calibration_samples": 48, "corrections": []}
    before = set(folder.glob("calibration/statistics-*.json"))
    run(folder, until="quantize", quantize={**changes, "calibrator": "minmax"})
    (kept,) = set(folder.glob("calibration/statistics-*.json")) - before
    written = kept.stat().st_mtime_ns
    ranges = [manifest_ranges(folder)]
    run(folder, until="quantize", quantize={**changes, "calibrator": "percentile"})
    ranges.append(manifest_ranges(folder))
    assert set(folder.glob("calibration/statistics-*.json")) - before == {kept}
    assert kept.stat().st_mtime_ns == written
    assert ranges[0] != ranges[1]
    kept.write_text("damaged")
    run(folder, until="quantize", quantize={**changes, "calibrator": "moving_average"})
    assert kept.stat().st_mtime_ns != written  # made again


def manifest_ranges(folder: Path) -> str:
    """The ranges of the newest calibrated student."""
    newest = max(folder.glob("int8_ptq-onnxruntime_x86-????????"), key=lambda one: one.stat().st_mtime_ns)
    return (newest / "ranges.json").read_text()
