"""pipeline.run: every rung, nothing done twice, nothing of another recipe touched, and going on after a stop."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline.conftest import TARGET, Listener, artifact_of, hidden

from edgekd import pipeline
from edgekd.artifact import file_hash
from edgekd.engine import FitResult
from edgekd.errors import OverwriteRefused, StorageError, UsageError
from edgekd.recipe import Recipe
from edgekd.weights import read_weights

RecipeOf = Callable[..., Recipe]
STAGES = [
    "teacher",
    "student_alone",
    "student",
    "quality",
    f"int8_ptq-{TARGET}",
    f"int8-{TARGET}",
    f"export-{TARGET}",
    f"bench-{TARGET}",
]


def times(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("[!.]*/manifest.json")}


def history(out: Path, stage: str) -> FitResult:
    return FitResult.model_validate_json(artifact_of(out, stage).file("history.json").read_bytes())


def test_every_rung_is_there_on_the_same_samples(finished: pipeline.RunResult) -> None:
    rungs = [(rung.rung, rung.target) for rung in finished.report.ladder]
    assert rungs == [
        ("teacher", None),
        ("student_alone", None),
        ("student", None),
        ("int8_ptq", TARGET),
        ("int8", TARGET),
        ("onnx_float", TARGET),
        ("onnx_int8", TARGET),
    ]
    assert {rung.n for rung in finished.report.ladder} == {80}
    assert all(0.25 < rung.value <= 1.0 for rung in finished.report.ladder), "four classes: better than chance"


def test_every_stage_has_its_artifact_and_its_parents(finished: pipeline.RunResult) -> None:
    lineage = {row.stage: row for row in finished.report.lineage}
    assert list(lineage) == STAGES
    parents = {
        stage: {other for other, found in lineage.items() if found.id in row.parents} for stage, row in lineage.items()
    }
    assert parents == {
        "teacher": set(),
        "student_alone": set(),
        "student": {"teacher"},
        "quality": {"teacher", "student_alone", "student"},
        f"int8_ptq-{TARGET}": {"student"},
        f"int8-{TARGET}": {"teacher", "student", f"int8_ptq-{TARGET}"},
        f"export-{TARGET}": {"student", f"int8-{TARGET}"},
        f"bench-{TARGET}": {f"export-{TARGET}"},
    }
    for row in lineage.values():
        assert artifact_of(finished.out, row.stage).id == row.id
        assert row.path.startswith(f"{row.stage}-{row.key[:8]}")


def test_report_is_written_in_three_forms_and_reads_back(finished: pipeline.RunResult) -> None:
    assert pipeline.open_report(finished.out) == finished.report
    assert json.loads((finished.out / "report.json").read_text())["schema_version"] == 1
    assert "onnx_int8" in (finished.out / "report.md").read_text(encoding="utf-8")
    assert (finished.out / "report.html").read_text(encoding="utf-8").startswith("<!")
    assert hidden(finished.out) == [".lock"]


def test_parity_fusion_and_verdict_are_there(finished: pipeline.RunResult) -> None:
    report = finished.report
    assert {row.file: row.top1_agreement >= 0.98 for row in report.parity} == {
        "model.onnx": True,
        "model_float.onnx": True,
    }
    assert [row.coverage for row in report.fusion] == [1.0]
    assert report.verdict is not None
    assert (report.verdict.overall, finished.exit_code) == ("PASS", 0)
    assert {row.rung for row in report.latency} == {"onnx_float", "onnx_int8"}


def test_spec_and_preprocessing_are_in_every_model(finished: pipeline.RunResult) -> None:
    specs = [
        artifact_of(finished.out, stage).manifest.spec for stage in STAGES if not stage.startswith(("bench", "quality"))
    ]
    assert specs[0] is not None
    assert specs[0].labels == ["pattern 0", "pattern 1", "pattern 2", "pattern 3"]
    assert all(spec == specs[0] for spec in specs)


def test_second_run_makes_nothing_and_says_the_same(copied: Path, small_recipe: RecipeOf) -> None:
    before, report = times(copied), pipeline.open_report(copied)
    listener = Listener()
    result = pipeline.run(small_recipe(), out=copied, watcher=listener)
    assert listener.stages == [(stage, True) for stage in STAGES]
    assert times(copied) == before
    assert result.report.lineage == report.lineage
    assert result.report.ladder == report.ladder
    assert all(stage.cached for stage in result.report.stages)


def test_same_recipe_elsewhere_gives_the_same_artifacts(
    finished: pipeline.RunResult, small_recipe: RecipeOf, tmp_path: Path
) -> None:
    pipeline.run(small_recipe(), out=tmp_path / "again", until="distill")
    for stage in ("teacher", "student_alone", "student"):
        assert artifact_of(tmp_path / "again", stage).id == artifact_of(finished.out, stage).id


@pytest.mark.parametrize(
    ("changes", "until", "made"),
    [
        ({"distill": {"train": {"epochs": 1}}}, "distill", ["student_alone", "student", "quality"]),
        ({"distill": {"losses": [{"name": "kd", "tau": 2.0}]}}, "distill", ["student", "quality"]),
        ({"teacher": {"train": {"epochs": 1}}}, "distill", ["teacher", "student", "quality"]),
        ({"quantize": {"calibration_samples": 32}}, "quantize", [f"int8_ptq-{TARGET}", f"int8-{TARGET}"]),
        ({"quantize": {"lr": 1e-5}}, "quantize", [f"int8-{TARGET}"]),
        ({"seed": 1}, "train", ["teacher"]),
        ({"data": {"augment": {"flip": True}}}, "train", ["teacher"]),
        ({"data": {"noise": 0.1}}, "train", ["teacher"]),
        ({"export": {"min_agreement": 0.9}, "quantize": {"mode": "ptq"}, "bench": {"queries": 70}}, "quantize", []),
    ],
)
def test_only_what_depends_on_a_change_is_made_again(
    copied: Path, small_recipe: RecipeOf, changes: dict[str, Any], until: pipeline.Stage, made: list[str]
) -> None:
    listener = Listener()
    pipeline.run(small_recipe(changes), out=copied, until=until, watcher=listener)
    assert listener.made == made


def test_bench_alone_is_made_again_when_the_protocol_changes(copied: Path, small_recipe: RecipeOf) -> None:
    listener = Listener()
    result = pipeline.run(small_recipe({"bench": {"budget_ms": 1e-6}}), out=copied, watcher=listener)
    assert listener.made == [f"bench-{TARGET}"]
    assert result.report.verdict is not None
    assert (result.report.verdict.overall, result.exit_code) == ("FAIL", 1)


def test_baseline_and_training_of_int8_can_be_left_out(small_recipe: RecipeOf, tmp_path: Path) -> None:
    recipe = small_recipe({"distill": {"baseline": False}, "quantize": {"mode": "ptq"}})
    result = pipeline.run(recipe, out=tmp_path / "out", until="quantize")
    assert [rung.rung for rung in result.report.ladder] == ["teacher", "student", "int8_ptq"]


def test_repeats_train_every_seed_and_the_first_goes_on(copied: Path, small_recipe: RecipeOf) -> None:
    listener = Listener()
    result = pipeline.run(small_recipe({"distill": {"repeats": 2}}), out=copied, until="quantize", watcher=listener)
    assert listener.made == ["student_alone-seed1", "student-seed1", "quality"]
    student = next(rung for rung in result.report.ladder if rung.rung == "student")
    assert student.seeds is not None
    assert len(student.seeds) == 2


def test_damaged_artifact_is_named_and_made_again_and_its_children_stay(copied: Path, small_recipe: RecipeOf) -> None:
    weights = artifact_of(copied, "student").file("model.safetensors")
    before = file_hash(weights)
    weights.write_bytes(weights.read_bytes()[:-1])
    listener = Listener()
    pipeline.run(small_recipe(), out=copied, watcher=listener)
    assert listener.made == ["student"]
    assert any("model.safetensors is damaged" in text and "made again" in text for text in listener.messages)
    assert file_hash(weights) == before
    assert all(row["ok"] for row in pipeline.verify(copied))


def test_stage_whose_folder_was_removed_is_made_again(copied: Path, small_recipe: RecipeOf) -> None:
    shutil.rmtree(artifact_of(copied, "student_alone").path)
    listener = Listener()
    pipeline.run(small_recipe(), out=copied, watcher=listener)
    assert listener.made == ["student_alone"]


def test_folder_of_another_recipe_is_refused_unless_overwrite(copied: Path, small_recipe: RecipeOf) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in copied.iterdir() if path.name != ".lock"}
    other = small_recipe({"name": "other"})
    with pytest.raises(OverwriteRefused, match=r"holds the run of another recipe: 'small' .*; this one is 'other'"):
        pipeline.run(other, out=copied, until="train")
    assert {path.name: path.stat().st_mtime_ns for path in copied.iterdir() if path.name != ".lock"} == before
    pipeline.run(other, out=copied, until="train", overwrite=True)
    with pytest.raises(OverwriteRefused, match="'other'"):
        pipeline.run(small_recipe(), out=copied, until="train")


def test_recipe_of_the_same_name_in_another_file_is_refused(tmp_path: Path, small_recipe: RecipeOf) -> None:
    files = [tmp_path / place / "r.toml" for place in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text("")
    pipeline.run(small_recipe(), out=tmp_path / "out", recipe_file=files[0], until="train")
    with pytest.raises(OverwriteRefused, match=r"one/r\.toml; this one is 'small' from .*two/r\.toml"):
        pipeline.run(small_recipe(), out=tmp_path / "out", recipe_file=files[1], until="train")
    files[0].unlink()  # the file was moved
    pipeline.run(small_recipe(), out=tmp_path / "out", recipe_file=files[1], until="train")


def test_folder_that_is_no_run_is_refused_and_not_touched(tmp_path: Path, small_recipe: RecipeOf) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(OverwriteRefused, match=r"thesis is not empty and is no run of edgekd\. .* --overwrite"):
        pipeline.run(small_recipe(), out=tmp_path / "thesis", until="train")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    pipeline.run(small_recipe(), out=tmp_path / "thesis", until="train", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_output_that_is_a_file_or_lies_in_one_is_refused(tmp_path: Path, small_recipe: RecipeOf) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OverwriteRefused, match=r"file is a file\. Choose another folder"):
        pipeline.run(small_recipe(), out=tmp_path / "file", until="train")
    with pytest.raises(StorageError, match="a part of this path is a file"):
        pipeline.run(small_recipe(), out=tmp_path / "file" / "run", until="train")


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_damaged_marker_is_told(tmp_path: Path, small_recipe: RecipeOf, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(content)
    with pytest.raises(OverwriteRefused, match=r"run\.json is damaged, so it does not tell whose run"):
        pipeline.run(small_recipe(), out=tmp_path / "out", until="train")


def test_folder_that_another_process_works_in_is_refused(copied: Path, small_recipe: RecipeOf) -> None:
    with (copied / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="Another edgekd process is at work in"):
            pipeline.run(small_recipe(), out=copied, until="train")
    pipeline.run(small_recipe(), out=copied, until="train")


def test_folder_of_a_run_that_was_killed_at_its_very_start_is_taken_up(tmp_path: Path, small_recipe: RecipeOf) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    listener = Listener()
    pipeline.run(small_recipe(), out=tmp_path / "out", until="train", watcher=listener)
    assert listener.made == ["teacher"]


def test_interrupted_training_goes_on_after_its_last_epoch_and_ends_the_same(
    finished: pipeline.RunResult, small_recipe: RecipeOf, tmp_path: Path
) -> None:
    def in_the_last_epoch(stage: str, done: int, total: int) -> BaseException | None:
        return KeyboardInterrupt() if stage == "student" and done == total - 1 else None

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(small_recipe(), out=out, until="distill", watcher=Listener(in_the_last_epoch))
    assert not list(out.glob("student-*"))
    assert {path.name.split("-")[0] for path in (out / ".checkpoints").iterdir()} == {"student"}

    listener = Listener()
    pipeline.run(small_recipe(), out=out, until="train")  # another verb in between loses nothing
    pipeline.run(small_recipe(), out=out, until="distill", watcher=listener)
    assert listener.made == ["student", "quality"]
    assert history(out, "student").resumed_at == 2
    assert [record.epoch for record in history(out, "student").history] == [0, 1, 2]
    ours, theirs = (
        read_weights(artifact_of(place, "student").file("model.safetensors")) for place in (out, finished.out)
    )
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert artifact_of(out, "student").id == artifact_of(finished.out, "student").id


def test_leftovers_of_a_killed_run_are_cleared_and_nothing_else(copied: Path, small_recipe: RecipeOf) -> None:
    stage = artifact_of(copied, "teacher").path.name
    partial = copied / f".{stage}.0a0b0c0d.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    aside = copied / ".student-aaaaaaaa.0a0b0c0d.old"
    student = artifact_of(copied, "student").path
    aside.mkdir()
    student.rename(aside / student.name)
    aside.rename(copied / f".{student.name}.0a0b0c0d.old")
    (copied / ".checkpoints").mkdir()
    (copied / ".checkpoints" / ".teacher-11111111.pt.abc").write_bytes(b"half")
    (copied / ".report.json.part").write_text("{")
    (copied / ".notes").write_text("the user's")
    listener = Listener()
    pipeline.run(small_recipe(), out=copied, watcher=listener)
    assert listener.made == []
    assert hidden(copied) == [".lock", ".notes"]


def test_content_of_the_student_s_first_weights_decides_not_their_path(
    finished: pipeline.RunResult, small_recipe: RecipeOf, tmp_path: Path
) -> None:
    weights = tmp_path / "start.safetensors"
    recipe = small_recipe({"student": {"weights": str(weights)}, "distill": {"train": {"epochs": 1}}})
    made = []
    for stage in ("student", "student", "student_alone"):
        shutil.copy(artifact_of(finished.out, stage).file("model.safetensors"), weights)
        listener = Listener()
        pipeline.run(recipe, out=tmp_path / "out", until="distill", watcher=listener)
        made.append(listener.made)
    again = ["student_alone", "student", "quality"]
    assert made == [["teacher", *again], [], again]


NETWORK = """
from torch import nn


def network(classes, input_shape):
    return nn.Sequential(nn.Conv2d(input_shape[0], 4, 3), nn.{activation}(), nn.Flatten(), nn.LazyLinear(classes))
"""


def test_content_of_user_code_decides_not_its_name(small_recipe: RecipeOf, tmp_path: Path) -> None:
    code, recipe_file = tmp_path / "network_of_mine.py", tmp_path / "r.toml"
    content = NETWORK.replace("nn.LazyLinear(classes)", "nn.Linear(4 * 36, classes)")
    made = []
    for activation in ("ReLU", "ReLU", "Hardswish"):
        code.write_text(content.format(activation=activation))
        changes = {"allow_user_code": True, "teacher": {"train": {"epochs": 1}}}
        values = small_recipe(changes).resolved()
        values["teacher"] = {"model": "network_of_mine:network", "train": values["teacher"]["train"]}
        from edgekd.recipe import parse_recipe

        listener = Listener()
        pipeline.run(
            parse_recipe(values, folder=tmp_path),
            out=tmp_path / "out",
            recipe_file=recipe_file,
            until="train",
            watcher=listener,
        )
        made.append(listener.made)
    assert made == [["teacher"], [], ["teacher"]]


def test_full_disk_stops_the_run_and_keeps_what_was_sealed(small_disk: Path, small_recipe: RecipeOf) -> None:
    out = small_disk / "out"
    recipe = small_recipe({"distill": {"baseline": False}})
    pipeline.run(recipe, out=out, until="train")
    filler = small_disk / "filler"
    space = os.statvfs(small_disk)
    filler.write_bytes(bytes((space.f_bavail - 4) * space.f_frsize))
    with pytest.raises(StorageError, match=r"Cannot write .*student-.*(Free some space)"):
        pipeline.run(recipe, out=out, until="distill")
    assert [row["kind"] for row in pipeline.verify(out)] == ["checkpoint"]
    filler.unlink()
    listener = Listener()
    pipeline.run(recipe, out=out, until="distill", watcher=listener)
    assert listener.made == ["student", "quality"]
    assert all(row["ok"] for row in pipeline.verify(out))
