"""Warm up until steady, then time in turns: the one place where a clock is read around an inference.

Models are callables without arguments, by name; they take turns in the order of the mapping, A B A B. Every sample is
kept. Nothing but the inference is between the two readings of the clock.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

__all__ = ["Around", "Rounds", "is_steady", "timed_rounds", "warm_up"]

Call = Callable[[], Any]
Clock = Callable[[], int]
Around = Tuple[Call, Call]
"""What happens right before and right after an inference, timed apart from it."""


class Rounds(NamedTuple):
    """What timed rounds gave, by name, in milliseconds; one value for each query.

    Args:
        origin_ns: the first clock reading.
        started_ms: when each inference began, since that.
        samples_ms: of the inference.
        before_ms, after_ms: of what is around it; empty where nothing is.
    """

    origin_ns: int
    started_ms: Dict[str, List[float]]
    samples_ms: Dict[str, List[float]]
    before_ms: Dict[str, List[float]]
    after_ms: Dict[str, List[float]]


def warm_up(
    models: Mapping[str, Call],
    *,
    minimum: int,
    max_seconds: float,
    window: int,
    steady: float,
    clock_ns: Clock = time.perf_counter_ns,
    around: Optional[Mapping[str, Around]] = None,
    each_round: Optional[Callable[[], None]] = None,
) -> Tuple[bool, int]:
    """Run in turns, as when timing, until every model is steady.

    Args:
        models: the inferences, by name.
        minimum: fewest rounds; at least twice `window`.
        max_seconds: end even if they are not steady.
        window: runs whose median is compared with that of the window before.
        steady: largest relative difference of those two medians.
        clock_ns: a monotonic clock, in nanoseconds.
        around: what runs before and after the inference of a model.
        each_round: called after every round.

    Returns:
        Whether they were steady, and the rounds that it took.
    """
    taken: Dict[str, List[float]] = {name: [] for name in models}
    end_ns = clock_ns() + max_seconds * 1e9
    rounds = 0
    while True:
        for name, model in models.items():
            before, after = (around or {}).get(name, (None, None))
            if before is not None:
                before()
            begin = clock_ns()
            model()
            taken[name].append((clock_ns() - begin) / 1e6)
            if after is not None:
                after()
        rounds += 1
        if each_round is not None:
            each_round()
        if rounds >= minimum and all(is_steady(times, window, steady) for times in taken.values()):
            return True, rounds
        if clock_ns() >= end_ns:
            return False, rounds


def is_steady(times: Sequence[float], window: int, steady: float) -> bool:
    """Whether the median of the last `window` times is that of the window before, within the share `steady`."""
    # medians: on a machine that others use too, a window's spread never settles, its middle does
    now = statistics.median(times[-window:])
    before = statistics.median(times[-2 * window : -window])
    return abs(now - before) <= steady * before


def timed_rounds(
    models: Mapping[str, Call],
    *,
    queries: int,
    max_seconds: float,
    clock_ns: Clock = time.perf_counter_ns,
    around: Optional[Mapping[str, Around]] = None,
    each_round: Optional[Callable[[int], None]] = None,
) -> Rounds:
    """Time every model `queries` times, in turns, or until `max_seconds` are over, with at least one round.

    Args:
        models: the inferences, by name.
        queries: rounds, >= 1.
        max_seconds: end of the timing.
        clock_ns: a monotonic clock, in nanoseconds.
        around: what runs before and after the inference of a model, timed apart.
        each_round: called after every round with the rounds done.
    """
    kept: List[Dict[str, List[float]]] = [{name: [] for name in models} for _ in range(4)]
    origin = clock_ns()
    found = Rounds(origin, *kept)
    for done in range(1, queries + 1):
        for name, model in models.items():
            before, after = (around or {}).get(name, (None, None))
            if before is not None and after is not None:
                _with_stages(name, model, before, after, found, clock_ns)
                continue
            begin = clock_ns()
            model()
            end = clock_ns()
            found.started_ms[name].append((begin - origin) / 1e6)
            found.samples_ms[name].append((end - begin) / 1e6)
        if each_round is not None:
            each_round(done)
        if clock_ns() - origin >= max_seconds * 1e9:
            break
    return found


def _with_stages(name: str, model: Call, before: Call, after: Call, found: Rounds, clock_ns: Clock) -> None:
    first = clock_ns()
    before()
    begin = clock_ns()
    model()
    end = clock_ns()
    after()
    last = clock_ns()
    found.before_ms[name].append((begin - first) / 1e6)
    found.started_ms[name].append((begin - found.origin_ns) / 1e6)
    found.samples_ms[name].append((end - begin) / 1e6)
    found.after_ms[name].append((last - end) / 1e6)
