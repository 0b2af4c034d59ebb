"""What every runner on an ONNX Runtime session does the same way: open, close, and end a recording."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import onnxruntime

__all__ = ["SessionRunner"]


class SessionRunner:
    """A session that is freed once, and says which model it was when it is used afterwards."""

    _session: onnxruntime.InferenceSession | None
    _where: str

    def profile_path(self) -> Path:
        """End the recording of operator times; the JSON file that has them."""
        return Path(self._open().end_profiling())

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise RuntimeError(f"runner of {self._where} is closed")
        return self._session
