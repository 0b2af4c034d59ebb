"""The latency protocol and its verdict: MLPerf SingleStream practice on any Runner.

One query at a time, models interleaved A B A B, warmed up until steady, every sample kept, a verdict with a stated
confidence. What a cold start costs is measured apart, in processes of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from edgekd._baseline import share_of
from edgekd._latency import (
    Int8VsFloatRow,
    Latency,
    LatencyRow,
    Protocol,
    int8_vs_float_row,
    latency_of,
    latency_row,
)
from edgekd._statistics import Ratio, compare
from edgekd.agent.timing import timed_rounds, warm_up
from edgekd.errors import GateFailed, UsageError
from edgekd.spec import Runner

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Int8VsFloatRow",
    "Latency",
    "LatencyRow",
    "Measurement",
    "Protocol",
    "Ratio",
    "compare",
    "int8_vs_float_row",
    "latency_of",
    "latency_row",
    "measure",
    "share_of",
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

    Only `Runner.run` is between the two readings of the clock; the loops are those that a device runs, too.

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
    calls = {name: partial(runner.run, feeds) for name, runner in runners.items()}
    steady, warmup = warm_up(
        calls,
        minimum=protocol.warmup_min,
        max_seconds=protocol.warmup_max_seconds,
        window=protocol.window,
        steady=protocol.steady,
        clock_ns=clock_ns,
    )
    rounds = timed_rounds(
        calls,
        queries=protocol.queries,
        max_seconds=protocol.max_seconds,
        clock_ns=clock_ns,
        each_round=None if progress is None else lambda done: progress(done, protocol.queries),
    )
    latencies = {
        name: latency_of(
            rounds.samples_ms[name],
            started_ms=rounds.started_ms[name],
            protocol=protocol,
            warmup=warmup,
            steady=steady,
            provider_requested=runner.provider_requested,
            provider_used=runner.provider_used,
        )
        for name, runner in runners.items()
    }
    return Measurement(latencies)
