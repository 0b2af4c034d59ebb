"""How long a run will take yet, from how long it took so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekd.pipeline._planned import PlannedStage

__all__ = ["Clock", "clock_time", "span"]

_SETTLED_SECONDS = 1.0  # the first steps of a stage are slower than the rest: say nothing yet


class Clock:
    """Time of the current stage and of the whole run, spent and left.

    Args:
        now: a monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.name = ""
        self.fraction = 0.0
        self._now = now
        self._begun = now()
        self._started: float | None = None
        self._planned: dict[str, PlannedStage] = {}
        self._told: list[float] = []  # the first fractions of this stage
        self._trained_seconds = self._trained_epochs = 0.0

    def plan(self, stages: Mapping[str, PlannedStage]) -> None:
        """The stages to come."""
        self._planned = dict(stages)

    def stage(self, name: str, *, cached: bool) -> None:
        """A stage starts; a cached one takes no time and tells nothing about the others."""
        self.name, self.fraction = name, 0.0
        self._told.clear()
        self._started = None if cached else self._now()
        if cached:
            self._planned.pop(name, None)

    def progress(self, done: int, total: int) -> None:
        """The current stage went on."""
        self.fraction = min(1.0, done / total) if total > 0 else 0.0
        if len(self._told) < 2:
            self._told.append(self.fraction)

    def end(self) -> float | None:
        """The current stage ends: its seconds, or None if none was at work."""
        if self._started is None:
            return None
        seconds, stage = self._now() - self._started, self._planned.pop(self.name, None)
        if stage is not None and stage.epochs:
            self._trained_seconds += seconds
            self._trained_epochs += stage.epochs * (1 - self._kept(stage))
        self._started = None
        return seconds

    def spent(self) -> float:
        """Seconds since the run began."""
        return self._now() - self._begun

    def stage_left(self) -> float | None:
        """Seconds until the current stage ends; None while that cannot be told."""
        if self._started is None or not self.fraction:
            return None
        seconds, here = self._now() - self._started, self.fraction - self._kept(self._planned.get(self.name))
        return seconds * (1 - self.fraction) / here if seconds >= _SETTLED_SECONDS and here > 0 else None

    def run_left(self) -> float | None:
        """Seconds until the run ends, by the pace of the training so far; None while that cannot be told."""
        later = [stage for name, stage in self._planned.items() if name != self.name]
        pace = self._pace()
        if self._started is None or not later or (pace is None and any(stage.epochs for stage in later)):
            return None
        here = self.stage_left()
        if here is None:
            here = max(0.0, self._expected(self._planned.get(self.name), pace) - (self._now() - self._started))
        return here + sum(self._expected(stage, pace) for stage in later)

    def _pace(self) -> float | None:
        """Seconds an epoch, counting what the current stage will have taken at its end."""
        seconds, epochs = self._trained_seconds, self._trained_epochs
        current, here = self._planned.get(self.name), self.stage_left()
        if current is not None and current.epochs and self._started is not None and here is not None:
            seconds += self._now() - self._started + here
            epochs += current.epochs * (1 - self._kept(current))
        return seconds / epochs if epochs else None

    def _kept(self, stage: PlannedStage | None) -> float:
        """The part of a training that an earlier process made: its first step here is not the first of all."""
        if stage is None or not stage.epochs or len(self._told) < 2:
            return 0.0
        first, second = self._told
        return max(0.0, first - (second - first))

    @staticmethod
    def _expected(stage: PlannedStage | None, pace: float | None) -> float:
        """Seconds of a stage; an unknown one, or training at an unknown pace, adds nothing."""
        return stage.seconds + stage.epochs * (pace or 0.0) if stage is not None else 0.0


def clock_time(seconds: float | None, suffix: str = "") -> str:
    """A time that is left as people read a clock; empty if it is not known.

    >>> clock_time(9.4), clock_time(75, " in all"), clock_time(7384)
    ('0:09 left', '1:15 left in all', '2:03:04 left')
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return f"{text} left{suffix}"


def span(seconds: float) -> str:
    """A time that was spent.

    >>> span(0.42), span(75)
    ('0.4 s', '1 min 15 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
