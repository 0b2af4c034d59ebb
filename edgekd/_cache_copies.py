"""Copies on this machine of shards that lie elsewhere, never more of them than a bound."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from edgekd._background import background
from edgekd.errors import UsageError

__all__ = ["Copies", "own_folder", "removed"]

_FOLDER, _OWNER = "edgekd-cache-", ".owner"


class Copies:
    """Files fetched from elsewhere into a local folder that never holds more than a bound; the oldest go first.

    Args:
        folder: nobody else's.
        fetch: brings a file by its name to a path.
        size_of: its size in bytes.
        limit_bytes: of all copies together, one that is just arriving included.
    """

    def __init__(
        self,
        folder: Path,
        fetch: Callable[[str, Path], None],
        size_of: Callable[[str], int],
        *,
        limit_bytes: int,
    ) -> None:
        self._folder, self._fetch, self._size_of, self._limit = folder, fetch, size_of, limit_bytes
        self._worker = background("copies")
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[int, Future[Path]]] = OrderedDict()

    def path(self, name: str) -> Path:
        """The copy; waits for it. Copies asked for before may be gone afterwards.

        Raises:
            UsageError: the file is larger than the bound.
        """
        with self._lock:
            found = self._kept.get(name) or self._begin(name, spare=None)
            if found is not None:
                self._kept.move_to_end(name)
        if found is None:
            raise UsageError(
                f"distill.cache.local_mb = {self._limit >> 20}: the shard {name} of {self._size_of(name)} bytes does"
                " not fit. Raise it."
            )
        try:
            return found[1].result()
        except BaseException:
            with self._lock:  # the next one who asks tries again
                self._kept.pop(name, None)
            raise

    def ahead(self, name: str) -> None:
        """Begin to fetch a file, if there is room beside the one that is in use."""
        with self._lock:
            if name not in self._kept:
                self._begin(name, spare=next(reversed(self._kept), None))

    def close(self) -> None:
        """Fetch nothing more."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _begin(self, name: str, spare: str | None) -> tuple[int, Future[Path]] | None:
        size = self._size_of(name)
        # the newest stays while it is read; one that is still arriving cannot be removed, only waited for
        for old in [one for one in self._kept if one != spare]:
            if self._held + size <= self._limit:
                break
            self._drop(old)
        if self._held + size > self._limit:
            return None
        self._kept[name] = (size, self._worker.submit(self._fetched, name))
        if spare is not None:
            self._kept.move_to_end(spare)
        return self._kept[name]

    @property
    def _held(self) -> int:
        return sum(size for size, _ in self._kept.values())

    def _drop(self, name: str) -> None:
        _, arriving = self._kept.pop(name)
        if not arriving.cancel():
            with contextlib.suppress(Exception):  # a fetch that failed left nothing; who asked for it was told
                arriving.result().unlink(missing_ok=True)

    def _fetched(self, name: str) -> Path:
        path = self._folder / name.replace("/", "-")
        try:
            self._fetch(name, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path


def own_folder() -> tuple[Path, int]:
    """A folder for this process alone, and the lock that says that it lives; those of dead ones are removed."""
    parent = Path(tempfile.gettempdir())
    for old in parent.glob(f"{_FOLDER}*") if os.name == "posix" else ():
        if (old / _OWNER).is_file() and (held := _held(old / _OWNER)) is not None:
            removed(old, held)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
        # None: somebody who clears up took it for a dead one's in this very moment
        if (owner := _held(folder / _OWNER)) is not None:
            return folder, owner


def removed(folder: Path, owner: int) -> None:
    """Remove such a folder, and let go of its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(owner)


def _held(path: Path) -> int | None:
    """An open file that is locked until it is closed; None if another process holds it, or it cannot be told."""
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
    except OSError:  # another user's
        return None
    try:
        import fcntl

        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows: nobody can tell who lives, and nobody's folder is removed
        return opened
    except BlockingIOError:
        os.close(opened)
        return None
    return opened
