"""The folder on the device that models come to: private, found again by nobody, gone with the program.

A program that was killed leaves its folder; the next one sweeps it. Each folder has a lock that its program holds for
as long as it lives, which the system gives back whatever way it ends; an identifier of a process would be used again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, List, Optional, Set

try:
    import fcntl
except ImportError:  # Windows has no such locks; there nothing is swept
    fcntl = None  # type: ignore[assignment]

__all__ = ["Work", "is_safe_name"]

PREFIX = "edgekd-agent-"
_LOCK = "lock"


def is_safe_name(name: str) -> bool:
    """Whether a relative name stays in its folder on any system."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and not PurePosixPath(name).is_absolute()
        and not PureWindowsPath(name).anchor
        and ".." not in parts
        and not any(character in name for character in "\0\\:")
        and len(name) < 1000
    )


class Work:
    """A new private folder, held until `remove`.

    Args:
        parent: folder to make it in; the system's temporary one when None.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Optional[str] = None) -> None:
        above = Path(parent) if parent else Path(tempfile.gettempdir())
        self.swept = _sweep(above)
        # it gets its name after its lock: nobody ever sees it without
        hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=str(above)))
        try:
            self._lock: Optional[IO[bytes]] = (hidden / _LOCK).open("wb")
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.folder = above / hidden.name[1:]
            hidden.rename(self.folder)
        except OSError:
            shutil.rmtree(str(hidden), ignore_errors=True)
            raise
        self.models = self.folder / "models"
        self.models.mkdir()
        self._installed: Set[Path] = set()
        self._half: Optional[Path] = None

    def path(self, name: str) -> Path:
        """Where a file that was put there lies, or one that was installed since.

        Raises:
            ValueError: a name that leads elsewhere.
        """
        if Path(name) in self._installed:
            return Path(name)
        return _inside(self.models, name)

    def put(self, name: str, piece: bytes, *, offset: int, sha256: Optional[str]) -> None:
        """Write a piece of a file; with its hash, the last one, after which the file is read back and has its name.

        Raises:
            OSError: no room, or not allowed. What was there of the file is gone.
            ValueError: what lies on the disk is not what was sent, or pieces do not follow each other.
        """
        self._receive(self.path(name), piece, offset, sha256)

    def install(self, folder: str, name: str, piece: bytes, *, offset: int, sha256: Optional[str]) -> str:
        """The same for a file that stays: it replaces an older one of its name only when it is whole.

        Args:
            folder: absolute, or beginning with ~ for the user's own; made if it is not there.

        Returns:
            The folder's path.

        Raises:
            OSError, ValueError: as for `put`.
        """
        above = Path(os.path.expanduser(folder))
        if not above.is_absolute():
            raise ValueError(f"the folder must be absolute or begin with ~, got '{folder}'")
        file = _inside(above, name)
        self._receive(file, piece, offset, sha256)
        if sha256 is not None:
            self._installed.add(file)
        return str(above)

    def _receive(self, file: Path, piece: bytes, offset: int, sha256: Optional[str]) -> None:
        half = file.with_name(file.name + ".part")
        self._half = half
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with half.open("ab" if offset else "wb") as stream:
                if stream.tell() != offset:
                    raise ValueError(f"{file.name}: a piece for byte {offset} came at byte {stream.tell()}")
                stream.write(piece)
                if sha256 is not None:
                    stream.flush()
                    os.fsync(stream.fileno())
            if sha256 is not None:
                if _sha256(half) != sha256:
                    raise ValueError(f"{file.name}: its SHA-256 on the disk differs from what was sent")
                os.replace(str(half), str(file))
        except (OSError, ValueError):
            self._drop_half()
            raise

    def _drop_half(self) -> None:
        if self._half is not None and self._half.exists():
            self._half.unlink()
        self._half = None

    def free_bytes(self) -> int:
        """Room on the disk of the folder."""
        return shutil.disk_usage(str(self.folder)).free

    def remove(self) -> None:
        """Remove the folder with everything in it; a second call does nothing."""
        with contextlib.suppress(OSError):
            self._drop_half()  # of a file that was to stay, when the connection broke
        shutil.rmtree(str(self.folder), ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _inside(folder: Path, name: str) -> Path:
    if not is_safe_name(name):
        raise ValueError(f"'{name}' is no name inside the folder")
    return folder / name


def _sweep(above: Path) -> List[str]:
    """Remove the folders of programs that are no more; their names."""
    gone: List[str] = []
    if fcntl is None or not above.is_dir():
        return gone
    for folder in sorted(above.glob(PREFIX + "*")):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(str(folder), ignore_errors=True)
                gone.append(folder.name)
        except OSError:  # its program lives, it is another user's, or somebody else sweeps it right now
            continue
    return gone


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()
