"""Threads beside a connection: one that ends it when nothing comes for too long, one that keeps what it complains."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import IO

__all__ = ["Tail", "Watch"]

_KEPT_BYTES = 1 << 16


class Watch:
    """Calls once when nothing was touched for too long while somebody waits.

    Args:
        fire: what to call, from a thread of its own.
        seconds: of silence.
    """

    def __init__(self, fire: Callable[[], None], seconds: float) -> None:
        self.fired = False
        self._fire, self._seconds = fire, seconds
        self._deadline: float | None = None
        self._changed = threading.Condition()
        self._stopped = False
        threading.Thread(target=self._look, daemon=True, name="edgekd-device-watch").start()

    def touch(self) -> None:
        """Something came."""
        # the thread finds the new deadline when the old one is over: it need not be woken
        self._deadline = time.monotonic() + self._seconds

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def __enter__(self) -> None:
        with self._changed:
            self.touch()
            self._changed.notify()

    def __exit__(self, *ignored: object) -> None:
        self._deadline = None

    def _look(self) -> None:
        with self._changed:
            while not self._stopped:
                deadline = self._deadline
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    self.fired = True
                    self._fire()
                    return
                self._changed.wait(left)


class Tail:
    """The end of what a stream gives, read by a thread so that its writer never waits.

    Args:
        stream: to read to its end.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = bytearray()
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True, name="edgekd-device-stderr")
        self._thread.start()

    def text(self) -> str:
        """What there is, once its writer has ended or a moment has passed."""
        self._thread.join(1.0)
        return bytes(self._kept).decode(errors="replace")

    def close(self) -> None:
        """Close the stream unless somebody still holds its other end."""
        self._thread.join(1.0)
        if not self._thread.is_alive():
            self._stream.close()

    def _read(self) -> None:
        while piece := os.read(self._stream.fileno(), 4096):
            self._kept += piece
            del self._kept[:-_KEPT_BYTES]
