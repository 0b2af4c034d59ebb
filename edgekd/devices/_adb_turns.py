"""Timing programs that cannot be interleaved query by query: turns of a few queries, each program warmed up anew."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from edgekd.devices._place import Measured, Progress, Reading, Timed, Timing

__all__ = ["Turns", "steady_after"]

_ROUNDS = 8
"""Turns of each model, where time allows: enough for the models to share what the device goes through."""


class Turns:
    """Models that take turns.

    Args:
        start: by model, run a new program for so many queries; gives the milliseconds of each.
        reading: the device's state now; its `at_ms` is replaced.
        timing: how long and how warm.
        provider: what the models run on.
        clock_s: seconds of a monotonic clock.
    """

    def __init__(
        self,
        start: Mapping[str, Callable[[int], list[float]]],
        reading: Callable[[], Reading],
        timing: Timing,
        *,
        provider: str,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._reading = reading
        self._timing = timing
        self._provider = provider
        self._clock_s = clock_s
        self._warmup = dict.fromkeys(start, 0)
        self._made = dict.fromkeys(start, 0)
        self._begun_s: dict[str, list[float]] = {name: [] for name in start}
        self._samples_ms: dict[str, list[float]] = {name: [] for name in start}

    def measured(self, *, cores: list[int], progress: Progress | None) -> Measured:
        """Warm up, then time in turns until all queries are made or the time is over."""
        readings = [(self._clock_s(), self._reading())]
        steady, means = self._probe()
        origin = self._clock_s()
        planned = self._timing.queries
        while (done := self._done()) < planned:
            left_s = self._timing.max_seconds - (self._clock_s() - origin)
            if done and left_s <= 0:
                break
            self._turn(self._size(done, left_s, means))
            if progress is not None:
                progress(self._done(), planned)
            if 0 < self._timing.readings_seconds <= self._clock_s() - readings[-1][0]:
                readings.append((self._clock_s(), self._reading()))
        readings.append((self._clock_s(), self._reading()))
        return self._result(readings, steady, cores)

    def _probe(self) -> tuple[dict[str, bool], dict[str, float]]:
        """How many queries each program needs to be warm, tried once; and the mean time of one, in milliseconds."""
        timing = self._timing
        steady, means = {}, {}
        for name, start in self._start.items():
            count = max(timing.warmup_min, 2 * timing.window)
            times = start(count)
            mean = max(statistics.fmean(times), 1e-6)
            most = int(1000.0 * timing.warmup_max_seconds / mean)
            found = steady_after(times, timing)
            made = len(times)
            if found is None and most > count:
                times = start(most)
                made += most
                found = steady_after(times, timing)
            # never so long that the warm-up of one turn takes more than was allowed
            self._warmup[name] = min(found if found is not None else len(times), max(most, 1))
            self._made[name] = made
            steady[name] = found is not None
            means[name] = statistics.fmean(times[len(times) // 2 :])
        return steady, means

    def _size(self, done: int, left_s: float, means: Mapping[str, float]) -> int:
        """Queries of the next turn of each model: a share of all, less where the time is nearly over."""
        share = math.ceil(self._timing.queries / _ROUNDS)
        fits = int(left_s * 1000.0 / max(sum(means.values()), 1e-6))
        return max(1, min(share, self._timing.queries - done, fits))

    def _turn(self, count: int) -> None:
        for name, start in self._start.items():
            times = start(self._warmup[name] + count)
            self._made[name] += self._warmup[name]
            # the program tells no start times: its queries ended just now, one right after the other
            after = self._clock_s()
            kept = times[self._warmup[name] :]
            for index, sample in enumerate(kept):
                self._begun_s[name].append(after - sum(kept[index:]) / 1000.0)
                self._samples_ms[name].append(sample)

    def _done(self) -> int:
        return min(len(samples) for samples in self._samples_ms.values())

    def _result(
        self, readings: Sequence[tuple[float, Reading]], steady: Mapping[str, bool], cores: list[int]
    ) -> Measured:
        origin = min(begun[0] for begun in self._begun_s.values())
        return Measured(
            models={
                name: Timed(
                    provider_requested=self._provider,
                    provider_used=self._provider,
                    warmup=self._made[name],
                    steady=steady[name],
                    started_ms=[1000.0 * (begun - origin) for begun in self._begun_s[name]],
                    samples_ms=self._samples_ms[name],
                )
                for name in self._start
            },
            readings=[reading.model_copy(update={"at_ms": 1000.0 * (at - origin)}) for at, reading in readings],
            cores=cores,
        )


def steady_after(times: Sequence[float], timing: Timing) -> int | None:
    """After how many queries two windows in a row had the same median, at least `warmup_min`; None for never."""
    window = timing.window
    for count in range(max(timing.warmup_min, 2 * window), len(times) + 1):
        now = statistics.median(times[count - window : count])
        before = statistics.median(times[count - 2 * window : count - window])
        if abs(now - before) <= timing.steady * before:
            return count
    return None
