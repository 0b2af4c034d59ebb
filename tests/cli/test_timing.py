"""cli.timing: the time that is left, by hand-worked runs on a clock of our own."""

from __future__ import annotations

import doctest

import pytest

from edgekd.cli import timing
from edgekd.cli.timing import Clock
from edgekd.pipeline._planned import PlannedStage


class Hand:
    """A clock whose hand the test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def hand() -> Hand:
    return Hand()


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(timing).attempted == 2
    assert doctest.testmod(timing).failed == 0


def test_stage_left_is_proportional_to_what_was_done(hand: Hand) -> None:
    clock = Clock(hand)
    clock.stage("teacher", cached=False)
    assert clock.stage_left() is None
    hand.seconds += 6
    clock.progress(1, 4)
    assert clock.stage_left() == pytest.approx(18)
    clock.progress(4, 4)
    assert clock.stage_left() == 0
    assert clock.end() == pytest.approx(6)
    assert clock.end() is None


def test_stage_left_is_unknown_while_the_first_second_runs(hand: Hand) -> None:
    clock = Clock(hand)
    clock.stage("teacher", cached=False)
    hand.seconds += 0.5
    clock.progress(1, 100)
    assert clock.stage_left() is None


def test_training_that_goes_on_counts_only_what_it_does_here(hand: Hand) -> None:
    clock = Clock(hand)
    clock.plan({"teacher": PlannedStage(epochs=10), "student": PlannedStage(epochs=20)})
    clock.stage("teacher", cached=False)
    for step in range(81, 91):  # of 100; a process before this one made 80
        hand.seconds += 2
        clock.progress(step, 100)
    assert clock.stage_left() == pytest.approx(20)  # 10 steps of 2 s
    assert clock.run_left() == pytest.approx(20 + 20 * 20)  # an epoch is 10 steps
    for step in range(91, 101):
        hand.seconds += 2
        clock.progress(step, 100)
    assert clock.end() == pytest.approx(40)
    clock.stage("student", cached=False)
    assert clock.run_left() is None  # nothing comes after it
    hand.seconds += 1
    clock.progress(1, 200)
    hand.seconds += 1
    clock.progress(2, 200)
    assert clock.stage_left() == pytest.approx(198)


def test_run_left_uses_the_pace_of_training(hand: Hand) -> None:
    clock = Clock(hand)
    clock.plan(
        {"teacher": PlannedStage(epochs=20), "student": PlannedStage(epochs=30), "bench": PlannedStage(seconds=15)}
    )
    clock.stage("teacher", cached=False)
    assert clock.run_left() is None, "no pace is known yet"
    hand.seconds += 10
    clock.progress(1, 4)
    # the teacher takes 40 s for 20 epochs: 30 s of it are left, 60 s for the student, 15 s for bench
    assert clock.run_left() == pytest.approx(30 + 60 + 15)
    hand.seconds += 30
    clock.end()
    clock.stage("student", cached=False)
    hand.seconds += 5
    # no step of the student is known, so the teacher's pace of 2 s an epoch stands: 60 - 5 + 15
    assert clock.run_left() == pytest.approx(70)


def test_run_left_ignores_stages_that_are_there(hand: Hand) -> None:
    clock = Clock(hand)
    clock.plan(
        {"teacher": PlannedStage(epochs=20), "export": PlannedStage(seconds=8), "bench": PlannedStage(seconds=15)}
    )
    clock.stage("teacher", cached=True)
    assert clock.end() is None
    clock.stage("export", cached=False)
    hand.seconds += 3
    assert clock.run_left() == pytest.approx(5 + 15)
    hand.seconds += 20
    assert clock.run_left() == pytest.approx(15), "a stage that takes longer than planned is about to end"
    clock.end()
    clock.stage("bench", cached=False)
    assert clock.run_left() is None, "the last stage's own time says it"
