"""pipeline.verify: every file and every parent, and nothing that was never finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline.conftest import TARGET, artifact_of

from edgekd import pipeline
from edgekd.errors import ArtifactError


def problems(out: Path) -> dict[str, str]:
    """What verify finds wrong, by stage."""
    return {row["path"].rpartition("-")[0]: row["problem"] for row in pipeline.verify(out) if not row["ok"]}


def test_finished_run_is_sound(finished: pipeline.RunResult) -> None:
    rows = pipeline.verify(finished.out)
    assert [(row["path"].rpartition("-")[0], row["kind"], row["ok"], row["problem"]) for row in rows] == [
        (f"bench-{TARGET}", "bench", True, None),
        (f"export-{TARGET}", "exported", True, None),
        (f"int8-{TARGET}", "quantized", True, None),
        (f"int8_ptq-{TARGET}", "quantized", True, None),
        ("quality", "quality", True, None),
        ("student", "checkpoint", True, None),
        ("student_alone", "checkpoint", True, None),
        ("teacher", "checkpoint", True, None),
    ]


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("teacher", "model.safetensors"),
        ("student", "predictions.npz"),
        ("student_alone", "history.json"),
        (f"export-{TARGET}", "model.onnx"),
        (f"bench-{TARGET}", "bench.json"),
    ],
)
def test_changed_file_is_named(copied: Path, stage: str, file: str) -> None:
    path = artifact_of(copied, stage).file(file)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{file} is damaged" in problems(copied)[stage]


def test_children_of_a_damaged_artifact_say_whom_they_lost(copied: Path) -> None:
    artifact_of(copied, "teacher").file("model.safetensors").unlink()
    found = problems(copied)
    assert "model.safetensors is missing" in found["teacher"]
    assert found["student"] == "its teacher is missing or damaged: the lineage is broken there"
    assert found[f"int8-{TARGET}"].startswith("its teacher is missing")
    assert set(found) == {"teacher", "student", "quality", f"int8-{TARGET}"}


def test_removed_artifact_is_missed_by_its_children(copied: Path) -> None:
    shutil.rmtree(artifact_of(copied, "student").path)
    assert set(problems(copied)) == {"quality", f"int8_ptq-{TARGET}", f"int8-{TARGET}", f"export-{TARGET}"}


def test_stage_that_lost_its_manifest_is_told(copied: Path) -> None:
    (artifact_of(copied, f"bench-{TARGET}").path / "manifest.json").unlink()
    assert "manifest.json is missing" in problems(copied)[f"bench-{TARGET}"]


def test_edited_manifest_is_told(copied: Path) -> None:
    path = artifact_of(copied, "student_alone").path / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    del manifest["files"]["predictions.npz"]
    path.write_text(json.dumps(manifest))
    assert "its id is not that of its files" in problems(copied)["student_alone"]


def test_what_was_never_finished_and_what_is_the_user_s_is_no_artifact(copied: Path) -> None:
    teacher = artifact_of(copied, "teacher").path
    shutil.copytree(teacher, copied / f".{teacher.name}.0a0b0c0d.partial")
    (copied / "notes").mkdir()
    assert problems(copied) == {}
    assert len(pipeline.verify(copied)) == 8


def test_two_artifacts_of_one_content_are_both_looked_at(copied: Path) -> None:
    teacher = artifact_of(copied, "teacher").path
    shutil.copytree(teacher, copied / "teacher-00000000")
    artifact_of(copied, "student").file("model.safetensors").unlink()
    rows = {row["path"]: row["ok"] for row in pipeline.verify(copied)}
    assert rows["teacher-00000000"]
    assert rows[teacher.name]


@pytest.mark.parametrize("exists", [True, False])
def test_folder_without_artifacts_is_told(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match=r"There is no artifact in .*out\. Give the folder of a run"):
        pipeline.verify(tmp_path / "out")


def test_report_that_is_missing_or_damaged_is_told(copied: Path) -> None:
    (copied / "report.json").write_text('{"schema_version": 1')
    with pytest.raises(ArtifactError, match=r"report\.json"):
        pipeline.open_report(copied)
    (copied / "report.json").unlink()
    with pytest.raises(ArtifactError, match=r"There is no run at .*: report\.json is missing"):
        pipeline.open_report(copied)
