"""Warm-up and timed rounds, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from edgekd.agent.timing import is_steady, timed_rounds, warm_up

MS = 1_000_000


class Clock:
    """Nanoseconds that pass only when somebody works."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def working(self, times_ms: Iterator[float]) -> Callable[[], None]:
        def work() -> None:
            self.now += int(next(times_ms) * MS)

        return work


def always(value: float) -> Iterator[float]:
    while True:
        yield value


def test_models_take_turns_and_every_sample_is_kept() -> None:
    clock = Clock()
    models = {"a": clock.working(iter([1.0, 9.0, 1.0])), "b": clock.working(always(2.0))}
    found = timed_rounds(models, queries=3, max_seconds=60.0, clock_ns=clock)
    assert found.samples_ms == {"a": [1.0, 9.0, 1.0], "b": [2.0, 2.0, 2.0]}
    assert found.started_ms == {"a": [0.0, 3.0, 14.0], "b": [1.0, 12.0, 15.0]}
    assert found.before_ms == {"a": [], "b": []}


def test_stages_around_an_inference_are_timed_apart() -> None:
    clock = Clock()
    around = {"a": (clock.working(always(0.5)), clock.working(always(0.25)))}
    found = timed_rounds({"a": clock.working(always(2.0))}, queries=2, max_seconds=60.0, clock_ns=clock, around=around)
    assert found.samples_ms == {"a": [2.0, 2.0]}
    assert found.before_ms == {"a": [0.5, 0.5]}
    assert found.after_ms == {"a": [0.25, 0.25]}
    assert found.started_ms == {"a": [0.5, 3.25]}


def test_timing_ends_with_its_time_after_one_round_at_least() -> None:
    clock = Clock()
    told: list[int] = []
    model = {"a": clock.working(always(1000.0))}
    found = timed_rounds(model, queries=9, max_seconds=2.5, clock_ns=clock, each_round=told.append)
    assert (len(found.samples_ms["a"]), told) == (3, [1, 2, 3])
    found = timed_rounds(model, queries=9, max_seconds=0.1, clock_ns=clock)
    assert len(found.samples_ms["a"]) == 1


def test_warm_up_ends_when_every_model_is_steady() -> None:
    clock = Clock()
    slow_start = iter([9.0] * 7 + [1.0] * 93)
    rounds: list[int] = []
    found = warm_up(
        {"a": clock.working(always(1.0)), "b": clock.working(slow_start)},
        minimum=4,
        max_seconds=60.0,
        window=2,
        steady=0.02,
        clock_ns=clock,
        each_round=lambda: rounds.append(1),
    )
    # medians of (9, 9) and (9, 9): steady at once, however slow
    assert found == (True, 4)
    assert len(rounds) == 4


def test_warm_up_that_never_settles_ends_with_its_time() -> None:
    clock = Clock()
    growing = (2.0**power for power in range(100))
    steady, rounds = warm_up(
        {"a": clock.working(growing)}, minimum=4, max_seconds=1.0, window=2, steady=0.02, clock_ns=clock
    )
    # 1 + 2 + ... + 512 = 1023 ms are the first ten
    assert (steady, rounds) == (False, 10)


@pytest.mark.parametrize(("last", "steady"), [(1.02, True), (1.03, False), (0.98, True), (0.9, False)])
def test_steady_compares_the_middles_of_two_windows(last: float, steady: bool) -> None:
    times = [50.0, 1.0, 1.0, 1.0, last, last, 99.0]
    assert is_steady(times[:4] + times[4:], 3, 0.0201) is steady
