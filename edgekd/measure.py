"""The latency protocol and its verdict: MLPerf SingleStream practice on any Runner.

One query at a time, models interleaved A B A B, warmed up until steady, every sample kept, a verdict with a stated
confidence. What a cold start costs is measured apart, in processes of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd._latency import (
    Int8VsFloatRow,
    Latency,
    LatencyRow,
    Protocol,
    int8_vs_float_row,
    latency_of,
    latency_row,
)
from edgekd._processes import ColdStart, cold_start
from edgekd._statistics import Ratio, compare
from edgekd.errors import GateFailed, UsageError
from edgekd.spec import Runner

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ColdStart",
    "Int8VsFloatRow",
    "Latency",
    "LatencyRow",
    "Measurement",
    "Protocol",
    "Ratio",
    "cold_start",
    "compare",
    "int8_vs_float_row",
    "latency_of",
    "latency_row",
    "measure",
]


@dataclass(frozen=True)
class Measurement:
    """The latencies of models measured together, by name, in the order they took turns."""

    latencies: Mapping[str, Latency]

    def ratio(self, reference: str, other: str) -> Ratio:
        """How many times faster `other` is than `reference`, paired run by run."""
        return compare(self.latencies[reference].samples_ms, self.latencies[other].samples_ms)


def measure(
    runners: Mapping[str, Runner],
    feeds: Mapping[str, np.ndarray],
    *,
    protocol: Protocol,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Time models against each other on the same input.

    Only `Runner.run` is between the two readings of the clock.

    Args:
        runners: open runners by name; they take turns in this order.
        feeds: the input arrays, the same for every model.
        protocol: how long, how warm and against which budget.
        clock_ns: a monotonic clock, in nanoseconds.
        progress: called after every round with rounds done and rounds planned.

    Raises:
        UsageError: no runners.
        GateFailed: a model does not run on the provider that was asked for.
    """
    if not runners:
        raise UsageError("measure takes at least one runner, got none.")
    for name, runner in runners.items():
        if runner.provider_used != runner.provider_requested:
            raise GateFailed(
                f"'{name}' was to run on {runner.provider_requested} and runs on {runner.provider_used}; its time would"
                " be another device's. Repair that provider or ask for the one that runs."
            )
    steady, warmup = _warm_up(runners, feeds, protocol, clock_ns)
    starts, samples = _timed_rounds(runners, feeds, protocol, clock_ns, progress)
    latencies = {
        name: latency_of(
            samples[name],
            started_ms=starts[name],
            protocol=protocol,
            warmup=warmup,
            steady=steady,
            provider_requested=runner.provider_requested,
            provider_used=runner.provider_used,
        )
        for name, runner in runners.items()
    }
    return Measurement(latencies)


def _once(runner: Runner, feeds: Mapping[str, np.ndarray], clock_ns: Callable[[], int]) -> tuple[int, float]:
    """When one run began, in nanoseconds, and how long it took, in milliseconds."""
    begin = clock_ns()
    runner.run(feeds)
    end = clock_ns()
    return begin, (end - begin) / 1e6


def _warm_up(
    runners: Mapping[str, Runner],
    feeds: Mapping[str, np.ndarray],
    protocol: Protocol,
    clock_ns: Callable[[], int],
) -> tuple[bool, int]:
    """Run in turns, as when timing, until every model is steady; whether it was, and the runs of each."""
    taken: dict[str, list[float]] = {name: [] for name in runners}
    end_ns = clock_ns() + protocol.warmup_max_seconds * 1e9
    rounds = 0
    while True:
        for name, runner in runners.items():
            taken[name].append(_once(runner, feeds, clock_ns)[1])
        rounds += 1
        if rounds >= protocol.warmup_min and all(_is_steady(times, protocol) for times in taken.values()):
            return True, rounds
        if clock_ns() >= end_ns:
            return False, rounds


def _is_steady(times: Sequence[float], protocol: Protocol) -> bool:
    # medians: on a machine that others use too, a window's spread never settles, its middle does
    now = statistics.median(times[-protocol.window :])
    before = statistics.median(times[-2 * protocol.window : -protocol.window])
    return abs(now - before) <= protocol.steady * before


def _timed_rounds(
    runners: Mapping[str, Runner],
    feeds: Mapping[str, np.ndarray],
    protocol: Protocol,
    clock_ns: Callable[[], int],
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Start times since the first run and durations of every run, by name, both in milliseconds."""
    starts: dict[str, list[float]] = {name: [] for name in runners}
    samples: dict[str, list[float]] = {name: [] for name in runners}
    origin = clock_ns()
    for done in range(1, protocol.queries + 1):
        for name, runner in runners.items():
            begin, sample_ms = _once(runner, feeds, clock_ns)
            starts[name].append((begin - origin) / 1e6)
            samples[name].append(sample_ms)
        if progress is not None:
            progress(done, protocol.queries)
        if clock_ns() - origin >= protocol.max_seconds * 1e9:
            break
    return starts, samples
