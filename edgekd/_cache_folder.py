"""Where a cache lies: a local folder, whose shards are mapped where they are."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from edgekd._sealing import storage_errors

__all__ = ["Folder", "Store"]


class Store(Protocol):
    """Files of a cache by their names below it, `epoch-0000/shard-00000.safetensors`."""

    where: str
    shared_lock: bool
    """`locked` keeps every other builder out; otherwise builders must not be given the same epochs."""

    def place(self, name: str) -> str:
        """The file as a user would name it."""
        ...

    def names(self) -> dict[str, int]:
        """Every file and its size in bytes, in one listing."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file, None if it is not there."""
        ...

    def start_of(self, name: str, count: int) -> bytes:
        """The first bytes of a file."""
        ...

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """A file from its beginning to its end, so many bytes at a time."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """A file, whole or not at all."""
        ...

    def local(self, name: str) -> Path:
        """A file on this machine with the shard's content; it may go when another one is asked for.

        Raises:
            FileNotFoundError: there is no such shard.
        """
        ...

    def ahead(self, name: str) -> None:
        """Say which shard will be asked for next."""
        ...

    def locked(self, epoch: str, *, wait: bool) -> AbstractContextManager[bool]:
        """Whether this process is the one to work on an epoch's folder; the context's end lets the next one in."""
        ...

    def close(self) -> None:
        """Let go of what only this process needs."""
        ...


class Folder:
    """A cache in a local folder, or on a disk that several machines see.

    Args:
        path: made if it is not there, when something is written.
    """

    shared_lock = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)

    def place(self, name: str) -> str:
        """See `Store`."""
        return str(self.path / name)

    def names(self) -> dict[str, int]:
        """See `Store`; what is half written has a dot in front and is left out."""
        found = {}
        for folder, folders, files in os.walk(self.path):
            folders[:] = [one for one in folders if not one.startswith(".")]
            for file in (one for one in files if not one.startswith(".")):
                path = Path(folder, file)
                found[path.relative_to(self.path).as_posix()] = path.stat().st_size
        return found

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def start_of(self, name: str, count: int) -> bytes:
        """See `Store`."""
        with (self.path / name).open("rb") as file:
            return file.read(count)

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """See `Store`."""
        with (self.path / name).open("rb") as file:
            while block := file.read(size):
                yield block

    def write(self, name: str, content: bytes) -> None:
        """See `Store`."""
        path = self.path / name
        # no `tempfile`: nobody but its owner may read what that makes, and a cache is shared
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    def local(self, name: str) -> Path:
        """See `Store`: the file itself."""
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def ahead(self, name: str) -> None:
        """See `Store`: a mapped file needs no fetching."""

    @contextmanager
    def locked(self, epoch: str, *, wait: bool) -> Iterator[bool]:
        """See `Store`: an advisory lock, which ends with the process however that ends."""
        try:
            import fcntl
        except ImportError:  # Windows: two builders at once do the same work twice, and publish the same files
            yield True
            return
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / f".{epoch}.lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            self._clear(epoch)
            yield True

    def _clear(self, epoch: str) -> None:
        """Remove what a killed builder left half written; the lock says that nobody is writing it now."""
        for part in (self.path / epoch).glob(".shard*"):
            part.unlink(missing_ok=True)

    def close(self) -> None:
        """See `Store`: nothing."""
