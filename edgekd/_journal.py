"""What a run does while it does it: one JSON object a line, appended and never changed."""

from __future__ import annotations

import datetime
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Journal"]

_BLOCK = 1 << 16


class Journal:
    """A file of lines, each written whole.

    Every line is with the operating system when `write` returns, so a killed process loses none; half a line, of a
    process that was killed in the middle of one, or of a disk that was full, is cut off.

    Args:
        path: of the file; it and its folder are made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def write(self, event: Mapping[str, Any]) -> None:
        """Append a line: the time (`utc`, ISO 8601), then the event's own keys.

        Args:
            event: plain values; a number that is NaN or infinite, which JSON does not have, becomes null.

        Raises:
            OSError: the disk refused; what was written before stays.
        """
        if self._file is None:
            self._file = _opened(self._path)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps(_plain({"utc": now, **event}), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if (written := os.write(self._file, line)) != len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Nothing more is written for now."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _opened(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.ftruncate(file, _whole_lines(file))
    except BaseException:
        os.close(file)
        raise
    return file


def _whole_lines(file: int) -> int:
    """Bytes up to the end of the last whole line."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        last = os.pread(file, end - start, start).rfind(b"\n")
        if last >= 0:
            return start + last + 1
        end = start
    return 0


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return _rounded(value) if math.isfinite(value) else None
    return value


def _rounded(value: float) -> float:
    """Seven digits: what float32 has; a line is half as long."""
    return float(f"{value:.7g}")
