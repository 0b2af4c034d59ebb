"""A cache at a URL that fsspec knows: an object store, or another machine."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekd._cache_copies import Copies, own_folder, removed
from edgekd.errors import ArtifactError, BackendMissing, EdgeKDError, StorageError, UsageError

__all__ = ["Bucket"]


class Bucket:
    """A cache in an object store or on another machine.

    Args:
        url: s3://bucket/folder, or another that fsspec has a file system for.
        limit_bytes: of local copies.

    Raises:
        BackendMissing: the package for this kind of URL is not installed.
        UsageError: no such kind of URL.
    """

    shared_lock = False

    def __init__(self, url: str, *, limit_bytes: int) -> None:
        self.where = url.rstrip("/")
        self._files, self._root = _file_system(self.where)
        self._limit = limit_bytes
        self._copies: Copies | None = None
        self._sizes: dict[str, int] = {}

    def place(self, name: str) -> str:
        """See `Store`."""
        return f"{self.where}/{name}"

    def names(self) -> dict[str, int]:
        """See `Store`."""
        with _told(self.where, "read"):
            try:
                found = self._files.find(self._root, detail=True)
            except FileNotFoundError:
                found = {}
        start = f"{self._root.rstrip('/')}/"
        self._sizes = {path.removeprefix(start): int(info["size"]) for path, info in found.items()}
        return dict(self._sizes)

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        with _told(self.place(name), "read"):
            try:
                return bytes(self._files.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def start_of(self, name: str, count: int) -> bytes:
        """See `Store`."""
        with _told(self.place(name), "read"):
            return bytes(self._files.cat_file(self._path(name), start=0, end=count))

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """See `Store`."""
        with _told(self.place(name), "read"), self._files.open(self._path(name), "rb") as file:
            while block := file.read(size):
                yield block

    def write(self, name: str, content: bytes) -> None:
        """See `Store`: object stores show an object when all of it is there."""
        with _told(self.place(name), "write"):
            self._files.pipe_file(self._path(name), content)

    def local(self, name: str) -> Path:
        """See `Store`."""
        if self._copies is None:
            folder, owner = own_folder()
            # also at the end of the process, whoever forgot to close
            self._remove = weakref.finalize(self, removed, folder, owner)
            self._copies = Copies(folder, self._fetch, self._size_of, limit_bytes=self._limit)
        return self._copies.path(name)

    def ahead(self, name: str) -> None:
        """See `Store`."""
        if self._copies is not None and name in (self._sizes or self.names()):
            self._copies.ahead(name)

    @contextmanager
    def locked(self, epoch: str, *, wait: bool) -> Iterator[bool]:
        """See `Store`: there is no lock that all hosts see, so everybody may go on."""
        yield True

    def close(self) -> None:
        """See `Store`: removes the local copies."""
        if self._copies is not None:
            self._copies.close()
            self._copies = None
            self._remove()

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _fetch(self, name: str, path: Path) -> None:
        with _told(self.place(name), "read"):
            self._files.get_file(self._path(name), str(path))

    def _size_of(self, name: str) -> int:
        if name not in self._sizes and name not in self.names():
            raise FileNotFoundError(self.place(name))
        return self._sizes[name]


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        # a listing that is kept would not show what other hosts build meanwhile
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise BackendMissing(
            f"distill.cache.path = '{url}' needs a package that is not installed: {error}. For s3:// install"
            " edgekd[s3]."
        ) from error
    except ValueError as error:
        raise UsageError(f"distill.cache.path = '{url}': {error}. Give a folder, or a URL such as s3://.") from error
    return files, str(root)


@contextmanager
def _told(place: str, doing: str) -> Iterator[None]:
    """What a file system's library raises, whichever it is, as one sentence about the place."""
    try:
        yield
    except EdgeKDError:
        raise
    except Exception as error:
        kind = StorageError if doing == "write" else ArtifactError
        reason = str(error).split("\n")[0] or type(error).__name__
        raise kind(
            f"Cannot {doing} {place}: {reason}. Look at the address, the credentials and the network."
        ) from error
