"""artifact: sealed whole or not at all, damage named, an old one kept until the new one is in its place."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd import _sealing
from edgekd.artifact import (
    Artifact,
    ParentLink,
    clear_leftovers,
    content_hash,
    file_hash,
    open_artifact,
    seal,
    storage_errors,
)
from edgekd.errors import ArtifactError, StorageError
from edgekd.spec import ModelSpec, Preprocessing, TensorSpec

SPEC = ModelSpec(
    inputs=[TensorSpec(name="input", shape=["B", 1, 8, 8])],
    outputs=[TensorSpec(name="logits", shape=["B", 2])],
    labels=["no", "yes"],
    preprocessing=Preprocessing(size=[8, 8], channels=1, mean=[0.5], std=[0.25]),
)
PARENT = ParentLink(role="teacher", kind="checkpoint", id="1" * 64)


def sealed(
    path: Path,
    content: bytes = b"weights",
    *,
    kind: str = "checkpoint",
    stage: str = "student",
    key: str = "k",
    journal: str = "1 s",
) -> Artifact:
    with seal(
        path,
        kind=kind,
        stage=stage,
        key=key,
        parents=[PARENT],
        recipe={"seed": 3},
        environment={"python": "3"},
    ) as draft:
        (draft.folder / "model.bin").write_bytes(content)
        (draft.folder / "history.json").write_text(journal)
        (draft.folder / "deep").mkdir()
        (draft.folder / "deep" / "note.txt").write_text("é", encoding="utf-8")
        draft.spec = SPEC
        draft.metrics = {"test_accuracy": 0.5, "test_n": 4}
    return open_artifact(path)


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_sealed_artifact_opens_with_all_that_it_was_given(tmp_path: Path) -> None:
    artifact = sealed(tmp_path / "runs" / "a")
    manifest = artifact.manifest
    assert (manifest.kind, manifest.stage, manifest.key) == ("checkpoint", "student", "k")
    assert manifest.parents == [PARENT]
    assert (manifest.recipe, manifest.environment) == ({"seed": 3}, {"python": "3"})
    assert manifest.spec == SPEC
    assert manifest.metrics == {"test_accuracy": 0.5, "test_n": 4}
    assert set(manifest.files) == {"model.bin", "history.json", "deep/note.txt"}
    assert artifact.file("model.bin").read_bytes() == b"weights"
    assert manifest.files["model.bin"] == file_hash(artifact.path / "model.bin")
    assert artifact.as_parent("student") == ParentLink(role="student", kind="checkpoint", id=artifact.id)
    assert hidden(tmp_path / "runs") == []


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_id_depends_on_content_kind_and_stage_only(tmp_path: Path) -> None:
    one = sealed(tmp_path / "one")
    assert sealed(tmp_path / "two", key="another").id == one.id
    assert sealed(tmp_path / "three", journal="2 s").id == one.id
    others = [
        sealed(tmp_path / "four", b"other").id,
        sealed(tmp_path / "five", kind="quantized").id,
        sealed(tmp_path / "six", stage="student_alone").id,
    ]
    assert len({one.id, *others}) == 4


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.none(), st.booleans()), min_size=2))
def test_content_hash_does_not_see_the_order_of_keys_but_every_value(values: dict[str, object]) -> None:
    assert content_hash(values) == content_hash(dict(reversed(values.items())))
    first = next(iter(values))
    assert content_hash(values) != content_hash({**values, first: "something else entirely"})


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda path: _flip_a_bit(path / "model.bin"), r"model\.bin is damaged"),
        (lambda path: (path / "deep" / "note.txt").write_bytes(b""), r"deep/note\.txt is damaged"),
        (lambda path: (path / "history.json").write_text("9 s"), r"history\.json is damaged"),
        (lambda path: (path / "model.bin").unlink(), r"model\.bin is missing"),
        (lambda path: (path / "manifest.json").unlink(), r"no artifact at .*manifest\.json is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe\x00"), r"manifest\.json is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, harm: Callable[[Path], object], told: str) -> None:
    path = sealed(tmp_path / "a").path
    harm(path)
    with pytest.raises(ArtifactError, match=told):
        open_artifact(path)


def test_manifest_whose_files_were_edited_is_damaged(tmp_path: Path) -> None:
    path = sealed(tmp_path / "a").path
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["model.bin"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "model.bin").unlink()
    with pytest.raises(ArtifactError, match="its id is not that of its files"):
        open_artifact(path)


def test_damage_is_not_looked_for_when_verify_is_off(tmp_path: Path) -> None:
    path = sealed(tmp_path / "a").path
    _flip_a_bit(path / "model.bin")
    assert open_artifact(path, verify=False).manifest.stage == "student"


def test_kind_is_checked(tmp_path: Path) -> None:
    path = sealed(tmp_path / "a").path
    assert open_artifact(path, kind="checkpoint").path == path
    with pytest.raises(ArtifactError, match="holds a 'checkpoint' artifact, but a 'exported' is needed"):
        open_artifact(path, kind="exported")


def test_nothing_there_is_an_artifact_error_for_a_folder_and_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="There is no artifact at"):
        open_artifact(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="There is no artifact at"):
        open_artifact(tmp_path / "file")


def test_unknown_file_of_an_artifact_lists_its_files(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"no file 'model\.onnx'\. It has: deep/note\.txt, history\.json, model\.bin"
    ):
        sealed(tmp_path / "a").file("model.onnx")


def half_sealed(path: Path, error: BaseException) -> None:
    with seal(path, kind="checkpoint", stage="s", key="k", parents=[], recipe={}, environment={}) as draft:
        (draft.folder / "half").write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt("stop")])
def test_nothing_changes_when_the_block_raises(tmp_path: Path, error: BaseException) -> None:
    old = sealed(tmp_path / "a")
    for place in ("a", "b"):
        with pytest.raises(type(error), match="stop"):
            half_sealed(tmp_path / place, error)
    assert open_artifact(tmp_path / "a").id == old.id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_new_artifact_takes_the_place_of_an_old_one_whole(tmp_path: Path) -> None:
    old = sealed(tmp_path / "a")
    (old.path / "stray").write_text("left by hand")
    new = sealed(tmp_path / "a", b"new")
    assert new.id != old.id
    assert not (new.path / "stray").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_old_artifact_is_put_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = sealed(tmp_path / "a")
    move = os.replace

    def refuse_the_new_one(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(_sealing.os, "replace", refuse_the_new_one)
    with pytest.raises(KeyboardInterrupt):
        sealed(tmp_path / "a", b"new")
    assert open_artifact(tmp_path / "a").id == old.id
    assert hidden(tmp_path) == []


def test_artifacts_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with seal(
            tmp_path / "a", kind="checkpoint", stage="s", key="k", parents=[], recipe={}, environment={}
        ) as draft:
            secret = draft.folder / "written_through_a_temporary_file"
            secret.write_bytes(b"x")
            secret.chmod(0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "a" / secret.name).stat().st_mode) == 0o644


def test_leftovers_are_removed_and_what_was_set_aside_comes_back(tmp_path: Path) -> None:
    kept = sealed(tmp_path / "kept-00000000")
    # killed while writing; killed after the new one was in place; killed between the two renames
    (tmp_path / ".new-11111111.0a0b0c0d.partial").mkdir()
    (tmp_path / ".new-11111111.0a0b0c0d.partial" / "manifest.json").write_text("{}")
    (tmp_path / ".kept-00000000.0a0b0c0d.old" / "kept-00000000").mkdir(parents=True)
    aside = sealed(tmp_path / "aside.v2-22222222")
    (tmp_path / ".aside.v2-22222222.0a0b0c0d.old").mkdir()
    aside.path.rename(tmp_path / ".aside.v2-22222222.0a0b0c0d.old" / "aside.v2-22222222")
    for foreign in (".git", ".notes.partial", ".cache.0a0b0c0d.tmp"):
        (tmp_path / foreign).mkdir()
    (tmp_path / ".a.0a0b0c0d.partial").write_text("a file, not ours")

    clear_leftovers(tmp_path)

    assert open_artifact(kept.path).id == kept.id
    assert open_artifact(aside.path).id == aside.id
    assert hidden(tmp_path) == [".a.0a0b0c0d.partial", ".cache.0a0b0c0d.tmp", ".git", ".notes.partial"]


def test_full_disk_is_a_storage_error_and_leaves_the_old_artifact(small_disk: Path) -> None:
    old = sealed(small_disk / "a")
    with pytest.raises(StorageError, match=r"Cannot write .*a: the disk is full\. Free some space and run the same"):
        sealed(small_disk / "a", bytes(300_000))
    assert open_artifact(small_disk / "a").id == old.id
    assert hidden(small_disk) == []
    assert sealed(small_disk / "a", bytes(100_000)).id != old.id


def test_disk_that_is_full_before_the_first_file_is_a_storage_error(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(300_000))
    with pytest.raises(StorageError, match="the disk is full"):
        sealed(small_disk / "a")
    assert not (small_disk / "a").exists()


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
def test_refused_write_says_why_and_what_to_do(tmp_path: Path, number: int, told: str) -> None:
    with pytest.raises(StorageError, match=told), storage_errors(tmp_path / "a"):
        raise OSError(number, os.strerror(number), str(tmp_path / "a" / "file"))


def test_path_through_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a part of this path is a file"):
        sealed(tmp_path / "file" / "deeper" / "a")


def test_file_elsewhere_that_cannot_be_read_is_no_refused_write(tmp_path: Path) -> None:
    elsewhere = OSError(errno.EACCES, "Permission denied", "/somewhere/else/data.npz")
    with pytest.raises(PermissionError, match=r"data\.npz"), storage_errors(tmp_path / "a"):
        raise elsewhere
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
