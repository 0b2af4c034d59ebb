"""_step_clock: every second of a step is counted once, in the part that it was spent in."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from edgekd._step_clock import PARTS, StepClock, StepProfile, part, ticking, together


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at

    def wait(self, seconds: float) -> None:
        self.at += seconds


def step(clock: StepClock, hand: Hand) -> None:
    """1 s of data, 4 s forward of which 3 s are the teacher, 0.5 s that has no name, 2 s backward."""
    with clock.part("data"):
        hand.wait(1)
    with clock.part("forward"):
        hand.wait(0.25)
        with part("teacher"):
            hand.wait(3)
        hand.wait(0.75)
    hand.wait(0.5)
    with clock.part("backward"):
        hand.wait(2)


def test_inner_part_takes_its_time_from_the_outer_one_and_the_rest_is_other():
    hand = Hand()
    with ticking(StepClock(now=hand)) as clock:
        clock.start()
        for _ in range(4):
            step(clock, hand)
            clock.end_step(16)
        assert clock.steps == 4
        assert clock.seconds == {"data": 4, "teacher": 12, "forward": 4, "other": 2, "backward": 8}
        profile = clock.lap()
    assert profile == StepProfile(
        steps=4, images=64, seconds={"data": 4, "teacher": 12, "forward": 4, "backward": 8, "other": 2}
    )
    assert list(profile.seconds) == [name for name in PARTS if name in profile.seconds]
    assert sum(profile.seconds.values()) == 30
    assert profile.images_per_s == pytest.approx(64 / 30)
    assert clock.lap() is None


def test_what_is_no_step_is_not_counted():
    hand = Hand()
    clock = StepClock(now=hand)
    with clock.part("data"):
        hand.wait(9)  # before the first step
    clock.end_step(1)
    assert clock.lap() is None
    clock.start()
    with clock.part("forward"):
        hand.wait(1)
    clock.end_step(8)
    with clock.part("data"):
        hand.wait(5)  # the end of an epoch is met in waiting for a batch that does not come
    clock.stop()
    hand.wait(60)  # validation
    clock.start()
    with clock.part("forward"):
        hand.wait(2)
    clock.end_step(8)
    assert clock.lap() == StepProfile(steps=2, images=16, seconds={"forward": 3, "other": 0})


def test_error_within_a_part_leaves_the_clock_usable():
    hand = Hand()
    clock = StepClock(now=hand)

    def fail() -> None:
        with ticking(clock):
            clock.start()
            with clock.part("forward"), clock.part("teacher"):
                raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.start()
    with part("teacher"):  # it is no longer the clock of a training
        hand.wait(1)
    clock.end_step(1)
    assert clock.lap() == StepProfile(steps=1, images=1, seconds={"other": 1})


def test_other_threads_are_not_counted():
    hand = Hand()
    with ticking(StepClock(now=hand)) as clock:
        clock.start()

        def load() -> None:
            with part("cache"):
                hand.wait(7)

        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        clock.end_step(1)
        assert clock.seconds == {"other": 7}


def test_one_training_within_another_has_its_own_clock():
    hand = Hand()
    with ticking(StepClock(now=hand)) as outer:
        outer.start()
        with ticking(StepClock(now=hand)) as inner:
            inner.start()
            with part("forward"):
                hand.wait(2)
            inner.end_step(1)
        with part("backward"):
            hand.wait(3)
        assert inner.seconds == {"forward": 2, "other": 0}
        outer.end_step(1)
        assert outer.seconds == {"other": 2, "backward": 3}


def test_part_costs_next_to_nothing_where_no_clock_runs():
    def microseconds() -> float:
        started = time.perf_counter()
        for _ in range(20_000):
            with part("teacher"):
                pass
        return (time.perf_counter() - started) / 20_000 * 1e6

    assert min(microseconds() for _ in range(5)) < 2.0  # measured: 0.3; the room is for a busy machine


def test_profiles_add_up():
    one = StepProfile(steps=3, images=30, seconds={"data": 1.0, "forward": 2.0})
    two = StepProfile(steps=1, images=10, seconds={"forward": 1.0, "teacher": 4.0})
    assert together([one, None, two]) == StepProfile(
        steps=4, images=40, seconds={"data": 1.0, "forward": 3.0, "teacher": 4.0}
    )
    assert together([None]) is None
    assert StepProfile(steps=1, images=4, seconds={}).images_per_s is None
    assert StepProfile.model_validate_json(one.model_dump_json()) == one


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
def test_parts_on_a_gpu_are_those_of_the_device_and_add_up_to_the_wall():
    device = torch.device("cuda")
    large, small = torch.randn(4096, 4096, device=device), torch.randn(512, 512, device=device)

    def run(clock: StepClock) -> None:
        with clock.part("forward"):
            for _ in range(4):
                large @ large
        with clock.part("backward"):
            small @ small
        clock.end_step(10)

    for _ in range(3):  # libraries load at their first use
        run(StepClock(device))
    torch.cuda.synchronize()
    clock = StepClock(device)
    clock.start()
    started = time.perf_counter()
    for _ in range(60):
        run(clock)
    torch.cuda.synchronize()
    clock.end_step(0)  # what the device was behind
    wall = time.perf_counter() - started
    profile = clock.lap()
    assert profile is not None
    assert (profile.steps, profile.images) == (61, 600)
    assert sum(profile.seconds.values()) == pytest.approx(wall, rel=0.05)
    # the host hands work over in no time: by its clock most would be 'other'
    assert profile.seconds["forward"] > 0.8 * wall
    assert profile.seconds["forward"] > 5 * profile.seconds["backward"]
