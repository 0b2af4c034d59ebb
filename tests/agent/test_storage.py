"""The folder on a device: private, whole files only, gone afterwards."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from edgekd.agent.storage import PREFIX, Work, is_safe_name


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_folder_is_private_and_gone_when_removed(tmp_path: Path) -> None:
    work = Work(str(tmp_path))
    assert stat.S_IMODE(work.folder.stat().st_mode) == 0o700
    assert work.folder.name.startswith(PREFIX)
    work.remove()
    work.remove()
    assert list(tmp_path.iterdir()) == []


def test_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    work = Work(str(tmp_path))
    work.put("a/m.onnx", b"first", offset=0, sha256=None)
    assert not (work.models / "a/m.onnx").exists()
    work.put("a/m.onnx", b"second", offset=5, sha256=sha256(b"firstsecond"))
    assert (work.models / "a/m.onnx").read_bytes() == b"firstsecond"
    assert [file.name for file in (work.models / "a").iterdir()] == ["m.onnx"]
    work.remove()


@pytest.mark.parametrize(
    ("offset", "digest", "match"),
    [(0, "0" * 64, "its SHA-256 on the disk differs"), (7, None, "a piece for byte 7 came at byte 0")],
)
def test_piece_that_does_not_fit_leaves_nothing(tmp_path: Path, offset: int, digest: str | None, match: str) -> None:
    work = Work(str(tmp_path))
    with pytest.raises(ValueError, match=match):
        work.put("m.onnx", b"bytes", offset=offset, sha256=digest)
    assert list(work.models.iterdir()) == []
    work.remove()


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "C:\\x", "a\\b", "c:x", "a\0b", "x" * 1000])
def test_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    assert not is_safe_name(name)
    work = Work(str(tmp_path))
    with pytest.raises(ValueError, match="is no name inside the folder"):
        work.path(name)
    work.remove()


@pytest.mark.parametrize("name", ["m.onnx", "a/b/c.npy", "..hidden", "a..b"])
def test_ordinary_name_is_taken(name: str) -> None:
    assert is_safe_name(name)


def test_installed_file_stays_and_replaces_the_old_one_only_when_whole(tmp_path: Path) -> None:
    stays = tmp_path / "stays"
    stays.mkdir()
    (stays / "m.onnx").write_bytes(b"old")
    work = Work(str(tmp_path))
    assert work.install(str(stays), "m.onnx", b"ne", offset=0, sha256=None) == str(stays)
    assert (stays / "m.onnx").read_bytes() == b"old"
    work.install(str(stays), "m.onnx", b"w", offset=2, sha256=sha256(b"new"))
    assert work.path(str(stays / "m.onnx")).read_bytes() == b"new"
    work.install(str(stays), "half.onnx", b"ha", offset=0, sha256=None)  # and then the connection breaks
    work.remove()
    assert sorted(file.name for file in stays.iterdir()) == ["m.onnx"]


def test_folder_that_stays_must_be_absolute(tmp_path: Path) -> None:
    work = Work(str(tmp_path))
    with pytest.raises(ValueError, match="must be absolute or begin with ~, got 'here'"):
        work.install("here", "m.onnx", b"", offset=0, sha256=None)
    with pytest.raises(ValueError, match="is no name inside the folder"):
        work.path(str(tmp_path / "never_installed.onnx"))
    work.remove()


def test_folder_of_a_living_program_is_left_alone_and_that_of_a_dead_one_swept(tmp_path: Path) -> None:
    living = Work(str(tmp_path))
    dead = Work(str(tmp_path))
    assert dead._lock is not None
    dead._lock.close()  # as the system does when a program is killed
    stranger = tmp_path / (PREFIX + "stranger")
    stranger.mkdir()
    third = Work(str(tmp_path))
    assert third.swept == [dead.folder.name]
    assert living.folder.is_dir()
    assert stranger.is_dir()
    for work in (living, third):
        work.remove()


def test_link_in_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").write_text("")
    (tmp_path / (PREFIX + "link")).symlink_to(precious)
    work = Work(str(tmp_path))
    assert (work.swept, precious.is_dir()) == ([], True)
    work.remove()
