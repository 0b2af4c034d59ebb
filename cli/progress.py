"""How far a run is, on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Protocol, TextIO

from edgekd._group import launched
from edgekd.cli.render import write
from edgekd.cli.timing import Clock, clock_time, span

if TYPE_CHECKING:
    from edgekd.pipeline._planned import PlannedStage

__all__ = ["Display", "Lines", "Mute", "Quiet", "watching"]

_EVERY_SECONDS = 5.0


class Display(Protocol):
    """A watcher of a run that can be told beforehand which stages will come."""

    def plan(self, stages: Mapping[str, PlannedStage]) -> None:
        """The stages to come, for the time that the whole run will take."""
        ...

    def stage(self, name: str, *, cached: bool) -> None:
        """A stage starts, or is skipped because its result is there."""
        ...

    def progress(self, done: int, total: int, note: str = "") -> None:
        """The current stage went on."""
        ...

    def message(self, text: str) -> None:
        """Something the user should know; one line."""
        ...

    def close(self, *, finished: bool) -> None:
        """The run ended, or was stopped."""
        ...


class Quiet:
    """Messages only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def plan(self, stages: Mapping[str, PlannedStage]) -> None:
        """Ignored."""

    def stage(self, name: str, *, cached: bool) -> None:
        """Ignored."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """One line."""
        write(self._stream, f"{text}\n")

    def close(self, *, finished: bool) -> None:
        """Nothing to end."""


class Mute:
    """Nothing: of several processes only the main one is seen."""

    def plan(self, stages: Mapping[str, PlannedStage]) -> None:
        """Ignored."""

    def stage(self, name: str, *, cached: bool) -> None:
        """Ignored."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""

    def close(self, *, finished: bool) -> None:
        """Nothing to end."""


class Lines:
    """One line when a stage starts and ends, and one every few seconds in between: for logs and CI.

    Args:
        stream: where to write.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, stream: TextIO, *, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = now
        self._clock = Clock(now)
        self._last = now()

    def plan(self, stages: Mapping[str, PlannedStage]) -> None:
        """Kept for the time that is left."""
        self._clock.plan(stages)

    def stage(self, name: str, *, cached: bool) -> None:
        """A line for the stage that ended, and one for this."""
        self._end("done in")
        self._clock.stage(name, cached=cached)
        self._say(f"[{name}] {'already there' if cached else 'started'}")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """A line, unless the last one is recent."""
        self._clock.progress(done, total)
        if self._now() - self._last < _EVERY_SECONDS:
            return
        left = [clock_time(self._clock.stage_left()), clock_time(self._clock.run_left(), " in all")]
        parts = [f"{100 * self._clock.fraction:.0f} %", *filter(None, [note]), *filter(None, left)]
        self._say(f"[{self._clock.name}] {', '.join(parts)}")

    def message(self, text: str) -> None:
        """One line."""
        self._say(text)

    def close(self, *, finished: bool) -> None:
        """The line of the last stage."""
        self._end("done in" if finished else "stopped after")

    def _end(self, how: str) -> None:
        if (seconds := self._clock.end()) is not None:
            self._say(f"[{self._clock.name}] {how} {span(seconds)}")

    def _say(self, text: str) -> None:
        self._last = self._now()
        write(self._stream, f"{text}\n")


@contextmanager
def watching(*, quiet: bool) -> Iterator[Display]:
    """Show progress while the block works; whatever it prints goes to stderr, so that stdout is the result alone."""
    display = _display(quiet=quiet)
    finished = False
    try:
        with redirect_stdout(sys.stderr), _own_words():
            yield display
            finished = True
    finally:
        display.close(finished=finished)


@contextmanager
def _own_words() -> Iterator[None]:
    """Keep libraries from telling our users what only their developers can act on; -W or PYTHONWARNINGS shows it."""
    if sys.warnoptions:
        yield
        return
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _display(*, quiet: bool) -> Display:
    if launched()[0] != 0:
        return Mute()
    if quiet:
        return Quiet(sys.stderr)
    if sys.stderr.isatty() and not os.environ.get("CI"):
        from edgekd.cli.bars import Bars

        return Bars(sys.stderr)
    return Lines(sys.stderr)
