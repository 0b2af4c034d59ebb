"""cli.progress and cli.bars: plain lines that do not flood a log, bars on a terminal, and a clean stdout."""

from __future__ import annotations

import io
import logging
import sys
import warnings

import pytest
from rich.console import Console

from edgekd.cli.bars import Bars
from edgekd.cli.progress import Lines, Quiet, watching
from edgekd.pipeline._planned import PlannedStage


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_say_start_progress_and_end() -> None:
    seconds = [0.0]
    stream = io.StringIO()
    display = Lines(stream, now=lambda: seconds[0])
    display.plan({"teacher": PlannedStage(epochs=1), "bench": PlannedStage(seconds=15)})
    display.stage("teacher", cached=False)
    for step in range(100):
        seconds[0] += 0.12
        display.progress(step + 1, 100, "epoch 1/1, loss 0.500")
    display.stage("student", cached=True)
    display.message("No engine was built.")
    display.close(finished=True)
    assert stream.getvalue().splitlines() == [
        "[teacher] started",
        "[teacher] 42 %, epoch 1/1, loss 0.500, 0:07 left, 0:22 left in all",
        "[teacher] 84 %, epoch 1/1, loss 0.500, 0:02 left, 0:17 left in all",
        "[teacher] done in 12.0 s",
        "[student] already there",
        "No engine was built.",
    ]


def test_lines_say_that_a_stage_was_stopped() -> None:
    stream = io.StringIO()
    display = Lines(stream)
    display.stage("teacher", cached=False)
    display.close(finished=False)
    assert stream.getvalue().splitlines()[-1].startswith("[teacher] stopped after 0.0 s")


def test_quiet_says_messages_only() -> None:
    stream = io.StringIO()
    display = Quiet(stream)
    display.plan({})
    display.stage("teacher", cached=False)
    display.progress(1, 2)
    display.message("look here")
    display.close(finished=True)
    assert stream.getvalue() == "look here\n"


def test_bars_leave_one_line_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    display = Bars(stream)
    display.stage("teacher", cached=True)
    display.stage("student", cached=False)
    display.message("a [bracket] stays")
    display.close(finished=False)
    shown = stream.getvalue()
    for text in ("teacher", "already there", "a [bracket] stays", "student", "stopped after"):
        assert text in shown


@pytest.mark.parametrize("name", ["teacher", "int8_ptq-onnxruntime_x86"])
def test_bars_fit_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    seconds = [0.0]
    display = Bars(Terminal(), now=lambda: seconds[0])
    try:
        display.plan({name: PlannedStage(epochs=5), "later": PlannedStage(epochs=50_000)})
        display.stage(name, cached=False)
        seconds[0] = 30.0
        display.progress(3, 7, "epoch 12/300, loss 0.123")
        canvas = Console(file=io.StringIO(), width=200, color_system=None)
        with canvas.capture() as captured:
            canvas.print(display._draw())
    finally:
        display.close(finished=True)
    lines = captured.get().splitlines()
    assert [line.strip() for line in lines][2] == "epoch 12/300, loss 0.123"
    assert " 43 % 0:40 left" in lines[0]
    assert "whole run" in lines[1]
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_prints_of_libraries_do_not_reach_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with watching(quiet=True):
        sys.stdout.write("chatter\n")
    sys.stdout.write("result\n")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("result\n", "chatter\n")


def test_warnings_of_libraries_are_kept_back_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watching(quiet=True):
            warnings.warn("for developers", FutureWarning, stacklevel=1)
            assert not logging.getLogger("some.library").isEnabledFor(logging.WARNING)
            with pytest.raises(RuntimeWarning):
                warnings.warn("numbers went wrong", RuntimeWarning, stacklevel=1)
        with pytest.raises(FutureWarning):
            warnings.warn("for developers", FutureWarning, stacklevel=1)
    assert logging.getLogger("some.library").isEnabledFor(logging.WARNING)


def test_lines_in_ci_although_it_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("CI", "true")
    with watching(quiet=False) as display:
        assert isinstance(display, Lines)
    monkeypatch.delenv("CI")
    with watching(quiet=False) as display:
        assert isinstance(display, Bars)
