"""Where the time of a training step goes: named parts, each second counted once.

One training at a time has the clock. Code deep below the loop says `with part("teacher"):` without being handed one;
where no clock runs, that costs less than a microsecond.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Final

import torch

from edgekd.spec import Frozen

__all__ = ["OTHER", "PARTS", "StepClock", "StepProfile", "part", "ticking", "together"]

OTHER: Final = "other"
PARTS: Final = ("data", "transfer", "cache", "teacher", "forward", "backward", "optimizer", OTHER)
"""In the order of a step: waiting for the batch; its way to the device; reading kept answers of a teacher; the teacher;
student and losses; their gradients; the update; everything between."""

_EVERY = 50
_FIRST = 4  # the first steps of a training are slower than the rest
_NOTHING: AbstractContextManager[None] = nullcontext()


class StepProfile(Frozen):
    """Where the time of some training steps went.

    Args:
        steps: that were timed.
        images: of those steps, over all processes.
        seconds: by part, see `PARTS`; their sum is the time of the steps.
    """

    steps: int
    images: int
    seconds: dict[str, float]

    @property
    def images_per_s(self) -> float | None:
        """Throughput of the steps; None if they took no time."""
        total = sum(self.seconds.values())
        return self.images / total if total > 0 else None


class StepClock:
    """Times the parts of training steps.

    A part within a part takes its time away from the outer one. On a CUDA device work runs behind the program, so there
    every 50th step is timed by events in the device's own order, which wait for nothing; the time of all steps is then
    shared out in the ratio of those. Parts of other threads than the one that made the clock are not counted: a step
    does not wait for them.

    Args:
        device: where the step computes.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, device: torch.device | None = None, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._now = now
        self._thread = threading.get_ident()
        self._stack: list[str] = []
        self._mark: float | None = None
        self._begun = 0.0
        self._open: dict[str, float] = {}
        self._events: _Events | None = None
        self._closed: list[_Events] = []
        self._seen = 0
        self._sampled: dict[str, float] = {}
        self._forget()

    def _forget(self) -> None:
        self.steps = self.images = 0
        self.seconds: dict[str, float] = {}
        self._total = 0.0

    def start(self) -> None:
        """A run of steps begins now: what came before, validation for instance, belongs to no step."""
        self.stop()
        self._mark = self._begun = self._now()
        self._events = self._new_events()

    def part(self, name: str) -> AbstractContextManager[None]:
        """The block's time is that of the part `name`; outside of a step it is not counted."""
        unsampled = self._device is not None and self._events is None
        if self._mark is None or unsampled or threading.get_ident() != self._thread:
            return _NOTHING
        return _Part(self, name)

    def end_step(self, images: int) -> None:
        """A step ends, and the next one begins.

        Args:
            images: of the step, over all processes.
        """
        if self._mark is None:
            return
        self._turn()
        self._total += self._mark - self._begun
        self._begun = self._mark
        self.steps, self.images, self._seen = self.steps + 1, self.images + images, self._seen + 1
        for name, seconds in self._open.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._open.clear()
        if self._events is not None:
            self._closed.append(self._events)
        self._read(wait=False)
        self._events = self._new_events()

    def stop(self) -> None:
        """No step follows for now; a step that was not ended is not counted."""
        self._mark = self._events = None
        self._stack.clear()
        self._open.clear()

    def lap(self) -> StepProfile | None:
        """The profile of the steps since the last lap; None if there was none.

        On a CUDA device a lap without a sampled step has the shares of those before it.
        """
        if not self.steps:
            return None
        seconds = self.seconds
        if self._device is not None:
            self._read(wait=True)
            sampled = self._sampled or {OTHER: 1.0}
            factor = self._total / (sum(sampled.values()) or 1.0)
            seconds = {name: value * factor for name, value in sampled.items()}
        ordered = {name: seconds[name] for name in (*PARTS, *sorted(seconds.keys() - set(PARTS))) if name in seconds}
        found = StepProfile(steps=self.steps, images=self.images, seconds=ordered)
        self._forget()
        return found

    def _turn(self) -> None:
        """What passed since the last turn was the part that is open now."""
        if self._mark is None:
            return
        now = self._now()
        name = self._stack[-1] if self._stack else OTHER
        if self._device is None:
            self._open[name] = self._open.get(name, 0.0) + now - self._mark
        elif self._events is not None:
            self._events.close(name)
        self._mark = now

    def _enter(self, name: str) -> None:
        self._turn()
        self._stack.append(name)

    def _exit(self) -> None:
        self._turn()
        if self._stack:  # an error may have stopped the clock within a part
            self._stack.pop()

    def _new_events(self) -> _Events | None:
        return _Events() if self._device is not None and self._seen % _EVERY == _FIRST else None

    def _read(self, *, wait: bool) -> None:
        """Take over the sampled steps that the device is through with."""
        while self._closed and (wait or self._closed[0].ready()):
            for name, seconds in self._closed.pop(0).seconds():
                self._sampled[name] = self._sampled.get(name, 0.0) + seconds


class _Part(AbstractContextManager[None]):
    __slots__ = ("_clock", "_name")

    def __init__(self, clock: StepClock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._clock._enter(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock._exit()


class _Events:
    """CUDA events at the turns of one step, and which part lies before each."""

    def __init__(self) -> None:
        self._marks = [_recorded()]
        self._names: list[str] = []

    def close(self, name: str) -> None:
        self._names.append(name)
        self._marks.append(_recorded())

    def ready(self) -> bool:
        return bool(self._marks[-1].query())  # type: ignore[no-untyped-call]

    def seconds(self) -> Iterator[tuple[str, float]]:
        """Waits for the device, if it is not through yet."""
        self._marks[-1].synchronize()
        for name, before, after in zip(self._names, self._marks, self._marks[1:], strict=False):
            yield name, before.elapsed_time(after) / 1000  # milliseconds


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


_current: StepClock | None = None


def part(name: str) -> AbstractContextManager[None]:
    """The block's time is that of the part `name` of the step at work; nothing where no clock runs."""
    return _NOTHING if _current is None else _current.part(name)


@contextmanager
def ticking(clock: StepClock) -> Iterator[StepClock]:
    """Make this the clock of the training at work; one within another takes over until it ends."""
    global _current
    before, _current = _current, clock
    try:
        yield clock
    finally:
        clock.stop()
        _current = before


def together(profiles: Iterable[StepProfile | None]) -> StepProfile | None:
    """Several profiles as one; None if there is none.

    >>> one = StepProfile(steps=2, images=8, seconds={"data": 1.0, "forward": 3.0})
    >>> together([one, None, one]).seconds
    {'data': 2.0, 'forward': 6.0}
    """
    found = [one for one in profiles if one is not None]
    if not found:
        return None
    names = dict.fromkeys(name for one in found for name in one.seconds)
    seconds = {name: sum(one.seconds.get(name, 0.0) for one in found) for name in names}
    return StepProfile(steps=sum(one.steps for one in found), images=sum(one.images for one in found), seconds=seconds)
