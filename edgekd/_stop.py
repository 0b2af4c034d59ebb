"""Ctrl-C and SIGTERM in the middle of a training: the step ends, its state is saved, then the signal has its way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Stop", "stopping"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def asked(self) -> bool:
        """A signal came."""
        return self.number is not None


@contextmanager
def stopping() -> Iterator[Stop]:
    """Hold Ctrl-C and SIGTERM back inside the block; the first is sent again at its end, a second one acts at once.

    Outside of the main thread no signal can be held back.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # one that is ignored (nohup) stays ignored
    before = {one: handler for one in _SIGNALS if (handler := signal.getsignal(one)) is not signal.SIG_IGN}

    def note(number: int, frame: Any) -> None:
        if stop.asked:
            _restore(before)
            signal.raise_signal(number)
        stop.number = number

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        _restore(before)
    if stop.number is not None:
        signal.raise_signal(stop.number)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # None: set by something other than Python, which cannot be put back
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
