"""Archives and folders from somebody else: every name is checked before a byte is written, every byte is accounted for.

A bundle's archive is a zip of files that are stored and not compressed, one after the other, without times, comments
or gaps. So what an archive unpacks to is as large as the archive, no byte of it goes unread, and the same files always
make the same archive. Any zip program can unpack it; an archive that another program packed is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekd.errors import ArtifactError, UsageError

__all__ = ["MOST_BYTES", "MOST_FILES", "Stored", "check_names", "files_of", "read_index", "unpack", "write_archive"]

MOST_FILES = 1000
MOST_BYTES = 0xFFFFFFFF - (1 << 20)
"""Of an archive: sizes and offsets are 32 bits wide."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_DATE = 0x21  # 1980-01-01, the first that a zip can tell
_VERSION, _UNIX = 20, 3 << 8
_MODE = (stat.S_IFREG | 0o644) << 16
_BLOCK = 1 << 20
_MOST_NAME = 200
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Stored:
    """One file of an archive: its name, its size, its CRC-32, and where its bytes start."""

    name: str
    size: int
    crc: int
    start: int


def check_names(names: Iterable[str], where: str) -> None:
    """Check relative paths that come from elsewhere, before any of them is used.

    Raises:
        ArtifactError: one leads out of its folder, is not plain ASCII, is a device's on some system, or two are the
            same file on a system that does not tell upper from lower case.
    """
    seen: dict[str, str] = {}
    for name in names:
        if (reason := _wrong_with(name)) is not None:
            raise ArtifactError(
                f"{where}: the name {name[:_MOST_NAME]!r} {reason}. Nothing was unpacked; do not use it."
            )
        key = name.lower()
        if key in seen:
            same = "twice" if seen[key] == name else f"and {seen[key]!r}, the same file on some systems"
            raise ArtifactError(f"{where}: it has {name!r} {same}. Nothing was unpacked; do not use it.")
        seen[key] = name
        if len(seen) > MOST_FILES:
            raise ArtifactError(f"{where}: it has more than {MOST_FILES} files. Nothing was unpacked; do not use it.")
    for key, name in seen.items():
        parts = key.split("/")
        for end in range(1, len(parts)):
            if (above := seen.get("/".join(parts[:end]))) is not None:
                raise ArtifactError(f"{where}: {above!r} is a file and the folder of {name!r}. Do not use it.")


def _wrong_with(name: str) -> str | None:
    if not name or len(name) > _MOST_NAME:
        return f"is empty or longer than {_MOST_NAME} characters"
    if "\0" in name or "\\" in name:
        return "has a NUL or a backslash"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    parts = name.split("/")
    if ".." in parts:
        return "leads out of its folder"
    for part in parts:
        if _PART.fullmatch(part) is None or part.endswith("."):
            return "has other characters than A-Z a-z 0-9 . _ + - or a part that starts or ends with a dot"
        if _DEVICES.fullmatch(part):
            return "is a device on some systems"
    return None


def files_of(folder: Path) -> dict[str, int]:
    """The files under a folder with their sizes in bytes, by relative path; no link is followed.

    Raises:
        ArtifactError: a link, a hard link to another file, something that is no file, or a name that is not safe.
    """
    found: dict[str, int] = {}
    _walk(folder, "", found)
    check_names(found, str(folder))
    return found


def _walk(folder: Path, prefix: str, found: dict[str, int]) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be read: {error.strerror}.") from error
    for entry in entries:
        name = f"{prefix}{entry.name}"
        path = f"{folder}: '{entry.name}'"
        if entry.is_symlink():
            raise ArtifactError(f"{path} is a symbolic link. Replace it by the file itself.")
        if entry.is_dir(follow_symlinks=False):
            if len(name) > _MOST_NAME:
                raise ArtifactError(f"{folder}: its folders go too deep. Do not use it.")
            _walk(Path(entry.path), f"{name}/", found)
            continue
        told = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(told.st_mode):
            raise ArtifactError(f"{path} is no file but a pipe, a socket or a device. Remove it.")
        if told.st_nlink > 1:
            raise ArtifactError(f"{path} is a hard link: another name leads to the same file. Replace it by a copy.")
        found[name] = told.st_size
        if len(found) > MOST_FILES:
            raise ArtifactError(f"{folder}: there are more than {MOST_FILES} files. Give the folder of a bundle.")


def write_archive(stream: BinaryIO, folder: Path, names: Sequence[str]) -> None:
    """Write files of a folder as an archive, in the order of their names; the same files give the same bytes.

    Raises:
        UsageError: together they are larger than an archive can be.
    """
    index: list[Stored] = []
    total = sum((folder / name).stat().st_size for name in names)
    if total > MOST_BYTES:
        raise UsageError(f"The bundle has {total} bytes, an archive at most {MOST_BYTES}. Write it as a folder.")
    position = 0
    for name in sorted(names):
        size, crc = _measured(folder / name)
        header = _local(name, size, crc)
        stream.write(header)
        with (folder / name).open("rb") as source:
            while block := source.read(_BLOCK):
                stream.write(block)
        index.append(Stored(name, size, crc, position + len(header)))
        position += len(header) + size
    stream.write(_directory(index, position))


def read_index(stream: BinaryIO, where: str) -> list[Stored]:
    """Read and check what an archive says that it holds; its files are not read yet.

    Args:
        stream: the archive, seekable.
        where: what it is called in messages.

    Raises:
        ArtifactError: it is damaged, unsafe, or not as `write_archive` writes it.
    """
    size = stream.seek(0, os.SEEK_END)
    end = _read(stream, max(size - _END.size, 0), _END.size)
    if len(end) < _END.size or not end.startswith(b"PK\5\6"):
        raise _refused(where, "its end is missing, or something follows it")
    _, disk, start_disk, here, count, length, start, comment = _END.unpack(end)
    if (disk, start_disk, comment) != (0, 0, 0) or here != count or start + length != size - _END.size:
        raise _refused(where, "its last record does not fit the file")
    if count > MOST_FILES or length > MOST_FILES * (_CENTRAL.size + _MOST_NAME):
        raise _refused(where, f"it has more than {MOST_FILES} files, or very long names")
    index = _entries(_read(stream, start, length), count, where)
    check_names([entry.name for entry in index], where)
    _account(stream, index, start, where)
    return index


def unpack(stream: BinaryIO, index: Sequence[Stored], folder: Path) -> dict[str, str]:
    """Write an archive's files into a new folder.

    Returns:
        SHA-256 of each, by name.

    Raises:
        ArtifactError: a file's bytes are not those that the archive was made with; names it.
    """
    hashes = {}
    for entry in index:
        target = folder / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, crc, left = hashlib.sha256(), 0, entry.size
        stream.seek(entry.start)
        with target.open("xb") as written:
            while left and (block := stream.read(min(left, _BLOCK))):
                digest.update(block)
                crc = zlib.crc32(block, crc)
                written.write(block)
                left -= len(block)
        if left or crc != entry.crc:
            raise ArtifactError(f"{entry.name} is damaged: its bytes are not those that were packed. Copy it again.")
        hashes[entry.name] = digest.hexdigest()
    return hashes


def _measured(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as source:
        while block := source.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def _local(name: str, size: int, crc: int) -> bytes:
    raw = name.encode("ascii")
    return _LOCAL.pack(b"PK\3\4", _VERSION, 0, 0, 0, _DATE, crc, size, size, len(raw), 0) + raw


def _central(entry: Stored) -> bytes:
    raw = entry.name.encode("ascii")
    offset = entry.start - _LOCAL.size - len(raw)
    made_by = _UNIX | _VERSION
    sizes = (entry.crc, entry.size, entry.size, len(raw), 0, 0, 0, 0, _MODE, offset)
    return _CENTRAL.pack(b"PK\1\2", made_by, _VERSION, 0, 0, 0, _DATE, *sizes) + raw


def _directory(index: Sequence[Stored], start: int) -> bytes:
    listed = b"".join(map(_central, index))
    return listed + _END.pack(b"PK\5\6", 0, 0, len(index), len(index), len(listed), start, 0)


def _entries(listed: bytes, count: int, where: str) -> list[Stored]:
    index, position = [], 0
    for _ in range(count):
        if len(listed) - position < _CENTRAL.size:
            raise _refused(where, "its list of files is cut short")
        values = _CENTRAL.unpack_from(listed, position)
        signature, _, _, flags, method, _, _, crc, packed, size, long, extra, comment, _, _, mode, offset = values
        position += _CENTRAL.size
        raw = listed[position : position + long]
        position += long + extra + comment
        name = raw.decode("utf-8", errors="backslashreplace")
        if signature != b"PK\1\2":
            raise _refused(where, "its list of files is damaged")
        check_names([name], where)
        _check_entry(where, name, flags, method, mode >> 16, packed == size)
        index.append(Stored(name, size, crc, offset + _LOCAL.size + len(raw)))
    return index


def _check_entry(where: str, name: str, flags: int, method: int, mode: int, whole: bool) -> None:
    if flags & 1:
        raise _refused(where, f"'{name}' is encrypted")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise _refused(where, f"'{name}' is a link or a device")
    if method != 0 or not whole:
        raise _refused(where, f"'{name}' is compressed, or its two sizes differ")


def _account(stream: BinaryIO, index: Sequence[Stored], start: int, where: str) -> None:
    """Every byte before the list of files must be a header that this program would write, or a file's content."""
    position = 0
    for entry in index:
        header = _local(entry.name, entry.size, entry.crc)
        if entry.start != position + len(header) or _read(stream, position, len(header)) != header:
            raise _refused(where, f"the header of '{entry.name}' is not as it was written")
        position = entry.start + entry.size
        if position > start:
            raise _refused(where, f"'{entry.name}' reaches over the end of the files")
    if position != start:
        raise _refused(where, "there are bytes between its files and their list")
    wanted = _directory(index, start)
    if _read(stream, start, len(wanted) + 1) != wanted:
        raise _refused(where, "its list of files is not as it was written")


def _read(stream: BinaryIO, start: int, length: int) -> bytes:
    stream.seek(start)
    return stream.read(length)


def _refused(where: str, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{where} is damaged, or no archive of `edgekd pack`: {reason}. Copy it again; an archive that another program"
        " packed is unpacked first, and its folder given."
    )
