"""What a command ends with, on the terminal: results on stdout, everything else on stderr.

A result is a table for people or, with `--json`, one JSON document. An error is one message on stderr; with `--json`
it is one line of JSON there, {"error": {"type", "message", "exit_code"}}, the last that stderr gets.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

__all__ = ["Failure", "Outcome", "console", "facts", "show_failure", "show_outcome", "size", "table", "write"]


@dataclass(frozen=True)
class Outcome:
    """What a command found: the JSON text, what people see, and the exit code.

    Args:
        as_json: which of the two is wanted.
        json: gives the JSON document.
        shown: gives what to print, in order.
        exit_code: of the command.
    """

    as_json: bool
    json: Callable[[], str]
    shown: Callable[[], Sequence[RenderableType]]
    exit_code: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a command ended early.

    Args:
        kind: class of the error.
        message: for the user.
        exit_code: of the command.
        trace: the traceback, of a fault of edgekd only.
        heading: what stands before the message.
    """

    kind: str
    message: str
    exit_code: int
    trace: str = ""
    heading: str = "Error"


def show_outcome(outcome: Outcome) -> int:
    """Print a result on stdout; its exit code."""
    if outcome.as_json:
        write(sys.stdout, outcome.json().rstrip("\n") + "\n")
        return outcome.exit_code
    drawn = console(sys.stdout)
    with drawn.capture() as captured:
        from rich.table import Table

        for part in outcome.shown():
            # a line of text may hold a path or a command to copy: the terminal may break it, not we
            drawn.print(part, soft_wrap=isinstance(part, str))
            if isinstance(part, Table):
                drawn.print()
    # rich fills lines up to the width of a table: blanks that only get in the way of a copy
    write(sys.stdout, "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    return outcome.exit_code


def show_failure(failure: Failure, *, as_json: bool) -> int:
    """Print an error on stderr; its exit code."""
    if as_json:
        values: dict[str, Any] = {"type": failure.kind, "message": failure.message, "exit_code": failure.exit_code}
        if failure.trace:
            values["traceback"] = failure.trace
        write(sys.stderr, json.dumps({"error": values}, ensure_ascii=False) + "\n")
        return failure.exit_code
    from rich.text import Text

    drawn = console(sys.stderr)
    with drawn.capture() as captured:
        # never wrapped: a path or a command in the message must stay one that can be copied
        drawn.print(Text.assemble((f"{failure.heading}: ", "bold red"), failure.message), soft_wrap=True)
    write(sys.stderr, failure.trace + captured.get())
    return failure.exit_code


def console(stream: TextIO) -> Console:
    """A rich console on a stream: plain when it is no terminal, without colours when NO_COLOR is set."""
    from rich.console import Console

    return Console(file=stream, highlight=False, emoji=False, markup=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose cells are taken as they are; numbers and names in the first column do not wrap."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    drawn.show_edge, drawn.pad_edge, drawn.padding = False, False, (0, 2, 0, 0)
    for index, column in enumerate(columns):
        drawn.add_column(column, no_wrap=index == 0, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def facts(title: str, values: Mapping[str, Any]) -> Table:
    """Nested values as a table of keys and values."""
    from edgekd._report_format import flattened

    return table(title, ("key", "value"), flattened(values))


def size(size_bytes: int) -> str:
    """A file size in binary units."""
    from edgekd._report_format import size as formatted

    return formatted(size_bytes)


def write(stream: TextIO, text: str) -> None:
    """Write text; a reader that has gone away (`| head`) is no error, and the command keeps its exit code."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # the interpreter flushes both streams at its end: give it a place where that works
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
