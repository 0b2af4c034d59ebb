"""Write a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edgekd.errors import StorageError

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step: a crash leaves the old file or the new one.

    Raises:
        StorageError: the disk refused; the old file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}. Choose another folder.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError as error:
        raise StorageError(
            f"Cannot write {path} ({len(content)} bytes): {error.strerror}. Free some space; the old file is untouched."
        ) from error
    finally:
        Path(name).unlink(missing_ok=True)
