"""cli.render: results that can be read at 80 columns, without colours where they are not wanted."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from edgekd.cli.render import Failure, Outcome, console, facts, show_failure, show_outcome, table


def test_cells_are_taken_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(False, str, lambda: [table("T", ("a", "b"), [("x[red]y", "[/]")]), "see [1]"], 5)
    assert show_outcome(outcome) == 5
    shown = capsys.readouterr().out
    assert "x[red]y" in shown
    assert "[/]" in shown
    assert shown.endswith("see [1]\n")


def test_table_fits_80_columns_when_not_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show_outcome(Outcome(False, str, lambda: [table("T", ("name", "what"), [("n", "word " * 60)])]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    assert sum(line.count("word") for line in lines) == 60


def test_line_of_text_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    path = "runs/" + "long/" * 40 + "report.html"
    show_outcome(Outcome(False, str, lambda: [f"Report: {path}"]))
    assert capsys.readouterr().out == f"Report: {path}\n"
    show_failure(Failure("UsageError", path, 2), as_json=False)
    assert capsys.readouterr().err == f"Error: {path}\n"


def test_json_is_the_whole_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_outcome(Outcome(True, lambda: '{"a": 1}', lambda: ["not this"], 1)) == 1
    assert capsys.readouterr().out == '{"a": 1}\n'


def test_json_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_failure(Failure("RecipeError", "two\nlines", 2), as_json=True) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert json.loads(shown)["error"]["message"] == "two\nlines"


def test_facts_flatten_nested_values(capsys: pytest.CaptureFixture[str]) -> None:
    show_outcome(Outcome(False, str, lambda: [facts("F", {"a": {"b": [1, 2]}, "c": None})]))
    lines = capsys.readouterr().out.splitlines()
    assert "a.b   1, 2" in lines
    assert any(line.startswith("c  ") for line in lines)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("wanted", [True, False])
def test_no_color_is_honoured(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not wanted:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = _Terminal()
    console(stream).print("x", style="red")
    assert ("\x1b[31m" in stream.getvalue()) is wanted


def test_reader_that_goes_away_does_not_change_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    read, end = os.pipe()
    os.close(read)
    with os.fdopen(end, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert show_outcome(Outcome(True, lambda: "x" * 100_000, list, 1)) == 1
        stream.write("more")  # now goes nowhere, so that the flush at the end of the process is quiet too
