"""Archives and folders from elsewhere: what is refused, by its text, before a byte of it is written."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd import _archive
from edgekd._archive import check_names, files_of, read_index, unpack, write_archive
from edgekd.errors import ArtifactError, UsageError


def archive_of(folder: Path, contents: dict[str, bytes]) -> bytes:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    stream = io.BytesIO()
    write_archive(stream, folder, list(contents))
    return stream.getvalue()


CONTENTS = {"b/two.bin": bytes(range(256)), "a.txt": b"one", "empty": b""}


def test_archive_gives_back_its_files(tmp_path: Path) -> None:
    data = archive_of(tmp_path / "in", CONTENTS)
    stream = io.BytesIO(data)
    index = read_index(stream, "x.zip")
    assert [(one.name, one.size) for one in index] == [("a.txt", 3), ("b/two.bin", 256), ("empty", 0)]
    (tmp_path / "out").mkdir()
    hashes = unpack(stream, index, tmp_path / "out")
    assert hashes["empty"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing
    assert {name: (tmp_path / "out" / name).read_bytes() for name in hashes} == CONTENTS


def test_any_zip_program_reads_the_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive_of(tmp_path, CONTENTS))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == CONTENTS
        assert {stat.S_IMODE(one.external_attr >> 16) for one in archive.infolist()} == {0o644}


def test_same_files_give_the_same_bytes_whatever_their_times_and_order(tmp_path: Path) -> None:
    first = archive_of(tmp_path / "one", CONTENTS)
    second = archive_of(tmp_path / "two", dict(reversed(CONTENTS.items())))
    os.utime(tmp_path / "two" / "a.txt", (1, 1))
    assert first == second


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "is an absolute path"),
        ("C:/windows", "is an absolute path"),
        ("C:evil", "is an absolute path"),
        ("../up", "leads out of its folder"),
        ("models/../../up", "leads out of its folder"),
        ("a\0b", "has a NUL or a backslash"),
        ("..\\up", "has a NUL or a backslash"),
        ("", "is empty or longer than 200 characters"),
        ("a" * 201, "is empty or longer than 200 characters"),
        ("a//b", "has other characters than"),
        ("./a", "has other characters than"),
        (".hidden", "has other characters than"),
        ("a.", "has other characters than"),
        ("a b", "has other characters than"),
        ("na\u00efve.onnx", "has other characters than"),
        ("nai\u0308ve.onnx", "has other characters than"),
        ("a\nb", "has other characters than"),
        ("models/NUL", "is a device on some systems"),
        ("com1.onnx", "is a device on some systems"),
    ],
)
def test_unsafe_names_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        check_names(["good.txt", name], "x.zip")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a", "a"], "it has 'a' twice"),
        (["model.onnx", "Model.onnx"], "it has 'Model.onnx' and 'model.onnx', the same file on some systems"),
        (["a", "a/b"], "'a' is a file and the folder of 'a/b'"),
        (["A", "a/b"], "'A' is a file and the folder of 'a/b'"),
        ([f"f{index}" for index in range(1001)], "more than 1000 files"),
    ],
)
def test_names_that_collide_are_refused(names: list[str], reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        check_names(names, "x.zip")


def foreign(name: str = "a.txt", data: bytes = b"one", *, mode: int = 0o644, method: int = 0, **more: int) -> bytes:
    """An archive by Python's own module."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.compress_type = method
        archive.writestr(info, data)
        archive.comment = b"c" * more.get("comment", 0)
    return stream.getvalue()


def flagged(flags: int) -> bytes:
    data = bytearray(foreign())
    at = data.index(b"PK\1\2")
    data[at + 8] |= flags
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "its end is missing"),
        (b"PK\5\6", "its end is missing"),
        (b"no archive at all, but long enough to hold one", "its end is missing"),
        (foreign(comment=3), "its end is missing, or something follows it"),
        (foreign(mode=stat.S_IFLNK | 0o777), "'a.txt' is a link or a device"),
        (foreign(mode=stat.S_IFCHR | 0o666), "'a.txt' is a link or a device"),
        (foreign(data=bytes(1 << 20), method=zipfile.ZIP_DEFLATED), "'a.txt' is compressed"),
        (flagged(1), "'a.txt' is encrypted"),
        (foreign("../../a.txt"), "leads out of its folder"),
        (foreign("/a.txt"), "is an absolute path"),
        (b"#!/bin/sh\n" + foreign(), "its last record does not fit the file"),
        (foreign(mode=0o600), "its list of files is not as it was written"),
    ],
)
def test_other_archives_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        read_index(io.BytesIO(data), "x.zip")


def test_archive_that_hides_bytes_between_its_files_is_refused(tmp_path: Path) -> None:
    data = archive_of(tmp_path, {"a.txt": b"one"})
    at = data.index(b"PK\1\2")
    end = bytearray(data[-22:])
    end[16:20] = (at + 4).to_bytes(4, "little")
    with pytest.raises(ArtifactError, match="there are bytes between its files and their list"):
        read_index(io.BytesIO(data[:at] + b"evil" + data[at:-22] + bytes(end)), "x.zip")


def test_two_names_for_the_same_bytes_are_refused(tmp_path: Path) -> None:
    """The overlapping files of a zip bomb: many entries that share one content."""
    data = bytearray(archive_of(tmp_path, {"a": b"one", "b": b"one"}))
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = bytes(4)
    with pytest.raises(ArtifactError, match="the header of 'b' is not as it was written"):
        read_index(io.BytesIO(bytes(data)), "x.zip")


def test_size_that_lies_is_refused(tmp_path: Path) -> None:
    data = bytearray(archive_of(tmp_path, {"a.txt": b"one"}))
    at = data.index(b"PK\1\2")
    data[at + 20 : at + 28] = (1 << 31).to_bytes(4, "little") * 2
    with pytest.raises(ArtifactError, match=r"the header of 'a.txt' is not as it was written"):
        read_index(io.BytesIO(bytes(data)), "x.zip")


def test_changed_content_is_named(tmp_path: Path) -> None:
    data = archive_of(tmp_path / "in", {"a.txt": b"one", "b.txt": b"two"})
    broken = io.BytesIO(data.replace(b"two", b"twO"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match=r"b\.txt is damaged"):
        unpack(broken, read_index(broken, "x.zip"), tmp_path / "out")


def test_bundle_too_large_for_an_archive_is_told_to_be_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_archive, "MOST_BYTES", 2)
    with pytest.raises(UsageError, match=r"The bundle has 3 bytes, an archive at most 2. Write it as a folder."):
        archive_of(tmp_path, {"a.txt": b"one"})


def test_folder_lists_its_files(tmp_path: Path) -> None:
    archive_of(tmp_path, CONTENTS)
    assert files_of(tmp_path) == {"a.txt": 3, "b/two.bin": 256, "empty": 0}


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="'a' is a symbolic link"):
        files_of(tmp_path / "in")


def test_linked_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="'a' is a symbolic link"):
        files_of(tmp_path / "in")


def test_hard_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    os.link(tmp_path / "secret", tmp_path / "in" / "a")
    with pytest.raises(ArtifactError, match="'a' is a hard link"):
        files_of(tmp_path / "in")


def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(ArtifactError, match="'a' is no file but a pipe, a socket or a device"):
        files_of(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    try:
        read_index(io.BytesIO(data), "x.zip")
    except ArtifactError:
        pass
    else:
        assert data == b"PK\5\6" + bytes(18)


def test_no_byte_of_an_archive_can_be_changed_unseen(tmp_path: Path) -> None:
    """Every byte, every bit once: structure, names, sizes and content alike."""
    data = archive_of(tmp_path / "in", {"a.txt": b"one", "b/c": b"second"})
    for place in range(len(data)):
        changed = io.BytesIO(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        out = tmp_path / f"out{place}"
        out.mkdir()
        with pytest.raises(ArtifactError):
            unpack(changed, read_index(changed, "x.zip"), out)
