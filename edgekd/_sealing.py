"""How a folder gets to the disk whole: written beside its place, synced, renamed; and what a crash leaves of that."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgekd.errors import StorageError

__all__ = ["clear_leftovers", "draft_folder", "files_in", "publish", "storage_errors", "sync"]

_PARTIAL, _OLD = ".partial", ".old"
_LEFTOVER = re.compile(rf"\.(?P<name>.+)\.[0-9a-f]{{8}}(?P<suffix>{re.escape(_PARTIAL)}|{re.escape(_OLD)})")
_REASONS = {
    errno.ENOSPC: "the disk is full. Free some space",
    errno.EDQUOT: "the disk quota is used up. Free some space",
    errno.EFBIG: "a file would be larger than is allowed here. Raise the limit (ulimit -f)",
    errno.EROFS: "the disk is read-only. Choose another --out folder",
    errno.EACCES: "permission denied. Choose another --out folder",
    errno.ENOTDIR: "a part of this path is a file. Choose another --out folder",
    errno.ENAMETOOLONG: "the path is too long. Choose another --out folder",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a refused write into a `StorageError` that names the place and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS or not _is_about(path, error.filename):
            raise
        raise StorageError(
            f"Cannot write {path}: {_REASONS[error.errno]} and run the same command again; finished stages are kept."
        ) from error


def draft_folder(path: Path) -> Path:
    """A new folder beside `path`, to be published there."""
    return _hidden_sibling(path, _PARTIAL)


def files_in(folder: Path) -> list[str]:
    """Relative paths of all files, sorted."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def sync(folder: Path, *, like: str) -> None:
    """Bring every file to the disk, each as readable as the file called `like`, whatever wrote it."""
    mode = stat.S_IMODE((folder / like).stat().st_mode)
    for name in files_in(folder):
        (folder / name).chmod(mode)
        with (folder / name).open("rb") as stream:
            os.fsync(stream.fileno())


def publish(folder: Path, path: Path) -> None:
    """Rename into place; what is there already steps aside first and is removed after."""
    if not path.exists():
        os.replace(folder, path)
        return
    aside = _hidden_sibling(path, _OLD)
    try:
        os.replace(path, aside / path.name)
        os.replace(folder, path)
    except BaseException:
        if not path.exists():
            os.replace(aside / path.name, path)
        with suppress(OSError):  # it is not empty if the new one made it to its place
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left of their seals in this folder, and put back what one had set aside.

    Nobody else may be sealing in the folder meanwhile.
    """
    for leftover in sorted(folder.iterdir()):
        found = _LEFTOVER.fullmatch(leftover.name)
        if found is None or not leftover.is_dir():
            continue
        path, kept = folder / found["name"], leftover / found["name"]
        if found["suffix"] == _OLD and kept.is_dir() and not path.exists():
            os.replace(kept, path)
        shutil.rmtree(leftover)


def _hidden_sibling(path: Path, suffix: str) -> Path:
    """A new folder with the permissions of any new folder; `tempfile` would let nobody but the owner read it."""
    folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")
    folder.mkdir()
    return folder


def _is_about(path: Path, place: Any) -> bool:
    """Whether a refused access was to `path`, its surroundings or its parents; a file elsewhere was only read."""
    if not isinstance(place, (str, os.PathLike)):
        return True
    found, own = Path(place).absolute(), path.parent.absolute()
    return found.is_relative_to(own) or own.is_relative_to(found)
