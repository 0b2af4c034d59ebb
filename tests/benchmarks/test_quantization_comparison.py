"""The form of the comparison with other tools: scores, photographs, workers and table. No tool is installed here."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOLDER = BENCHMARKS / "quantization"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a part of the comparison as Python does when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def logits(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


# scores


def test_scores_are_those_worked_by_hand(script: Any) -> None:
    scores = script("_scores")
    wanted, found = logits([10.0, 0.0], [0.0, 10.0]), logits([9.0, 0.0], [0.0, 11.0])
    judged = scores.judge(wanted, found, labels=np.array([0, 0]), draws=scores.draws_of(np.arange(2), seed=0))
    score = scores.score(judged)
    assert score["sqnr_db"]["value"] == pytest.approx(20.0)  # 200 over 2
    assert score["agreement"]["value"] == 1.0
    assert score["accuracy"]["value"] == 0.5
    assert score["accuracy"]["n"] == 2


def test_kl_is_zero_and_sqnr_unbounded_when_the_logits_are_equal(script: Any) -> None:
    scores = script("_scores")
    same = logits([1.0, 2.0, 3.0])
    score = scores.score(scores.judge(same, same, labels=None, draws=scores.draws_of(np.arange(1), seed=0)))
    assert score["kl"]["value"] == pytest.approx(0.0, abs=1e-12)
    assert score["sqnr_db"] == {"value": None, "ci95": None}
    assert "accuracy" not in score


def test_difference_is_the_better_one_minus_the_other(script: Any) -> None:
    scores = script("_scores")
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(60, 5)).astype(np.float32)
    draws = scores.draws_of(np.arange(60), seed=0)
    error = rng.normal(size=wanted.shape).astype(np.float32)
    near, far = (
        scores.judge(wanted, wanted + size * error, labels=wanted.argmax(1), draws=draws) for size in (0.1, 1.0)
    )
    found = scores.score_difference(near, far)
    assert found["sqnr_db"]["value"] == pytest.approx(20.0, abs=1e-4)  # ten times the error
    assert found["sqnr_db"]["ci95"] == pytest.approx([20.0, 20.0], abs=1e-3)  # in every resample
    assert found["agreement"]["value"] > 0 > found["kl"]["value"]
    assert found["accuracy"] == found["agreement"]  # the labels are the float file's classes


def test_photographs_are_drawn_as_a_whole(script: Any) -> None:
    groups = np.array([0, 0, 1, 1, 1, 2])
    draws = script("_scores").draws_of(groups, seed=3)
    for group in range(3):
        members = draws[:, groups == group]
        assert (members == members[:, :1]).all()
    assert set(np.unique(draws[:, [0, 2, 5]].sum(axis=1))) == {3.0}  # three photographs in each resample


# photographs


def photographs(script: Any, folder: Path, count: int) -> list[Any]:
    module = script("_photographs")
    found = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", (300, 200), (number, 0, 0)).save(path)
        found.append(module.Photograph(path, "made"))
    return found


def test_no_photograph_calibrates_and_is_judged(script: Any, tmp_path: Path) -> None:
    module = script("_photographs")
    found = photographs(script, tmp_path, 10)
    calibrating = module.calibration_crops(found, 9, size=32, seed=0)
    judged, groups = module.evaluation_crops(found, 3, size=32, seed=0)
    colours = set(np.unique(calibrating[..., 0])), set(np.unique(judged[..., 0]))
    assert colours == ({0, 3, 6, 9}, {1, 2, 4, 5, 7, 8})
    assert calibrating.shape == (9, 32, 32, 3)
    assert groups.tolist() == [number for number in range(6) for _ in range(3)]


def test_transparent_parts_become_white(script: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(path)
    assert np.asarray(script("_photographs").Photograph(path, "made").pixels()).min() == 255


def test_files_of_a_qt_resource_are_found_by_path(script: Any) -> None:
    names, offsets = b"", []
    for name in ("erase", "bee.webp"):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    data = struct.pack(">I", 3) + b"abc"
    root = struct.pack(">IHII", 0, 2, 1, 1)  # a folder: one child, which is node 1
    folder = struct.pack(">IHII", offsets[0], 2, 1, 2)
    file = struct.pack(">IHHHI", offsets[1], 0, 0, 0, 0)
    tree = root + folder + file
    header = struct.pack(">4s4I", b"qres", 1, 20, 20 + len(tree), 20 + len(tree) + len(data))
    found = list(script("_photographs")._qt_resources(header + tree + data + names))
    assert found == [("erase/bee.webp", b"abc")]


def test_a_damaged_resource_file_is_refused(script: Any) -> None:
    with pytest.raises(ValueError, match="no Qt resource file"):
        list(script("_photographs")._qt_resources(b"zzzz" + bytes(16)))


# workers


@pytest.fixture
def task(script: Any, tmp_path: Path) -> Any:
    """A tiny network with its float file and calibration images."""
    networks, students = script("_networks"), script("_students")
    network = networks.Network("tiny", "tiny", size=16, classes=10)
    images = networks.inputs(network, 4, seed=1)
    np.savez(tmp_path / "images.npz", images=images.numpy())
    model = networks.float_file(
        network.build(0), images, tmp_path / "float.onnx", target=networks.target("onnxruntime_x86")
    )
    return students.Task(
        student=students.Student("tiny", "photographs", 16),
        source="",
        model=model,
        images=tmp_path / "images.npz",
        inputs=images.numpy(),
        labels=None,
        groups=np.arange(4),
        facts={"data": "photographs", "calibration_images": 4},
    )


def carried_out(script: Any, task: Any, folder: Path, **changes: Any) -> dict[str, Any]:
    module = script("_ways")
    way = dataclasses.replace(module.ways(reduce_range=True)["ort_minmax"], environment=None, **changes)
    limits = module.Limits(seconds=120, memory_bytes=2**34, core=min(os.sched_getaffinity(0)))
    found: dict[str, Any] = module.carry_out(way, task, folder, environments=folder, recreate=False, limits=limits)
    return found


def test_a_worker_leaves_a_file_and_what_it_cost(script: Any, task: Any, tmp_path: Path) -> None:
    record = carried_out(script, task, tmp_path)
    assert 0 < record["seconds"] <= record["process_seconds"]
    assert record["peak_rss_bytes"] >= record["rss_before_bytes"] > 2**20
    assert record["calibration_images"] == 4
    assert record["versions"]["onnxruntime"]
    reference = script("_scores").logits_of(task.model, task.inputs, runtime="onnxruntime")
    found = script("_scores").logits_of(tmp_path / "ort_minmax.onnx", task.inputs, runtime="onnxruntime")
    assert found.shape == reference.shape
    assert 0 < np.abs(found - reference).max() < np.abs(reference).max()


def test_a_worker_that_fails_is_recorded_with_its_error(script: Any, task: Any, tmp_path: Path) -> None:
    record = carried_out(script, task, tmp_path, options={"method": "Nothing", "reduce_range": True})
    assert set(record) == {"error"}
    assert "Nothing" in record["error"]
    assert not (tmp_path / "ort_minmax.onnx").exists()


def test_a_worker_is_stopped_when_it_holds_too_much(script: Any, task: Any, tmp_path: Path) -> None:
    module = script("_ways")
    way = dataclasses.replace(module.ways(reduce_range=True)["ort_minmax"], environment=None)
    limits = module.Limits(seconds=120, memory_bytes=2**20, core=min(os.sched_getaffinity(0)))
    record = module.carry_out(way, task, tmp_path, environments=tmp_path, recreate=False, limits=limits)
    assert record["error"].startswith("stopped: it held more than")


def test_every_way_has_a_worker_and_an_environment(script: Any) -> None:
    module, environments = script("_ways"), script("_environments").ENVIRONMENTS
    both = [module.ways(reduce_range=flag) for flag in (True, False)]
    assert set(both[1]) <= set(both[0])
    assert len(both[0]) >= 12
    for way in both[0].values():
        assert way.worker is None or (FOLDER / "peers" / f"{way.worker}.py").is_file()
        assert way.environment is None or way.environment in environments
    used = {way.worker for way in both[0].values() if way.worker}
    assert {path.stem for path in (FOLDER / "peers").glob("*.py") if not path.name.startswith("_")} == used


def test_an_environment_is_another_one_when_its_packages_change(script: Any) -> None:
    module = script("_environments")
    assert module.Environment(("a==1",)).key != module.Environment(("a==2",)).key
    assert module.Environment(("a==1",)).key == module.Environment(("a==1",)).key


def test_pip_says_why_a_peer_does_not_install(script: Any, tmp_path: Path) -> None:
    module = script("_environments")
    with pytest.raises(module.NotInstalled, match=r"no-such-file\.whl"):
        module._install(Path(sys.executable), ["--no-index", str(tmp_path / "no-such-file.whl")])


# the record and its table


def compared(script: Any, task: Any, folder: Path) -> dict[str, Any]:
    """What the script finds for two ways, one of which has no file."""
    module: ModuleType = script("compare")
    options = module.parsed(
        [
            "--runtimes",
            "onnxruntime",
            "--rounds",
            "12",
            "--blocks",
            "2",
            "--warmup-seconds",
            "0.1",
            "--max-seconds",
            "20",
        ]
    )
    made = carried_out(script, task, folder)
    files = {"float": task.model, "edgekd_ptq": folder / "ort_minmax.onnx"}
    quality = module.judged(files, task, runtime="onnxruntime", seed=0)
    latency = module._latency(files, task, runtime="onnxruntime", options=options)
    rows: dict[str, Any] = {
        name: {
            "tool": name,
            "setting": "s",
            "size_bytes": path.stat().st_size,
            "quality": {"onnxruntime": quality[name]},
            "latency": {"onnxruntime": latency[name]},
            "runs": {"onnxruntime": script("_runtimes").runs("onnxruntime", path)},
        }
        for name, path in files.items()
    }
    rows["edgekd_ptq"] |= made
    rows["lost"] = {"tool": "Lost", "setting": "s", "error": "does not install: no wheel"}
    return {"n": 4, "reduce_range": True, "data": {"data": "photographs", "calibration_images": 4}, "rows": rows}


def test_record_and_table_hold_every_way(script: Any, task: Any, tmp_path: Path) -> None:
    found = compared(script, task, tmp_path)
    row = found["rows"]["edgekd_ptq"]
    for clock in ("wall", "cpu"):
        ratio = row["latency"]["onnxruntime"][clock]["speedup_over_float"]
        assert ratio["n"] == 12
        assert ratio["ci95"][0] <= ratio["speedup"] <= ratio["ci95"][1]
    assert row["runs"]["onnxruntime"]["int8"] > 0
    assert found["rows"]["float"]["quality"]["onnxruntime"]["agreement"]["value"] == 1.0
    table = script("table").markdown(found)
    head, rule, *body = table.splitlines()
    assert head.count("|") == rule.count("|") == body[0].count("|") == body[1].count("|")
    assert "agreement with float" in head
    assert "Lost, s: no file. does not install: no wheel" in table


def test_places_are_not_in_the_recorded_command(script: Any) -> None:
    words = ["--keep", "/a", "--seed", "1", "--photographs=/b", "--run", "/c", "--reuse", "--limit", "5"]
    assert script("compare")._public(words) == ["--seed", "1", "--limit", "5"]


RESULTS = sorted((BENCHMARKS / "results").glob("quantization_*.json"))
RESULTS = [path for path in RESULTS if path.stem not in ("quantization_flow", "quantization_families")]


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_committed_results_are_complete(path: Path, script: Any) -> None:
    text = path.read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["benchmark"] == "quantization/compare"
    assert record["machine"]["has_vnni"] in (True, False, None)
    made = {name: row for name, row in record["rows"].items() if "error" not in row}
    assert {"float", record["compared_with"]} <= set(made)
    for name, row in made.items():
        assert set(row["quality"]) == set(row["latency"]) == {"onnxruntime", "openvino"}
        assert row["size_bytes"] > 0
        if name != "float" and "versions" in row:
            assert row["peak_rss_bytes"] > 0 < row["cpu_seconds"]
    assert len(script("table").markdown(record).splitlines()) >= len(made) + 2
    for private in (platform.node(), str(Path.home()), "/tmp/"):
        assert len(private) < 4 or private not in text


def test_every_family_and_seed_is_in_the_committed_result(script: Any) -> None:
    record = json.loads((BENCHMARKS / "results" / "quantization_families.json").read_text(encoding="utf-8"))
    families = script("families")
    assert record["benchmark"] == "quantization/families"
    assert set(record["families"]) == set(families.STUDENTS)
    for found in record["families"].values():
        assert [row["seed"] for row in found["students"]] == [0, 1, 2]
        assert all(row["int8_minus_student"]["n"] == 10_000 for row in found["students"])


def test_a_family_s_summary_is_worked_by_hand(script: Any) -> None:
    rows = [
        {
            "seed": seed,
            "student": 0.9,
            "int8_ptq": 0.891,
            "int8": 0.9,
            "int8_ptq_minus_student": {"points": -0.9},
            "int8_minus_student": {"points": points},
        }
        for seed, points in enumerate((-0.3, 0.0, 0.0))
    ]
    found = script("families").summary(rows)
    assert found["ptq_keeps"] == pytest.approx(0.99)
    assert found["int8_minus_student"]["points"] == pytest.approx(-0.1)
    # sd 0.1732, over the root of 3 0.1, times 4.303
    assert found["int8_minus_student"]["ci95"] == pytest.approx([-0.5303, 0.3303], abs=1e-4)
    assert "-0.10 (-0.53 to +0.33)" in script("families").table({"families": {"tiny": found}})
