"""Progress on a terminal: a bar for the stage at work and one for the whole run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from edgekd.cli.render import console
from edgekd.cli.timing import Clock, clock_time, span

if TYPE_CHECKING:
    from edgekd.pipeline._planned import PlannedStage

__all__ = ["Bars"]

_PER_SECOND = 8


class Bars:
    """Finished stages as lines that stay, the stage at work and the whole run as bars below them.

    Args:
        stream: a terminal.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, stream: TextIO, *, now: Callable[[], float] = time.monotonic) -> None:
        self._clock = Clock(now)
        self._note = ""
        self._spinner = Spinner("dots")
        self._console = console(stream)
        # what libraries print goes through the display's console, above the bars
        self._live = Live(
            console=self._console, get_renderable=self._draw, refresh_per_second=_PER_SECOND, transient=True
        )
        self._live.start()

    def plan(self, stages: Mapping[str, PlannedStage]) -> None:
        """Kept for the time that is left."""
        self._clock.plan(stages)

    def stage(self, name: str, *, cached: bool) -> None:
        """A line for the stage that ended; a bar for this one."""
        self._end(finished=True)
        self._clock.stage(name, cached=cached)
        self._note = ""
        if cached:
            self._line("✓", "dim green", name, "already there")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Move the bar; it is drawn by its own thread."""
        self._clock.progress(done, total)
        self._note = note

    def message(self, text: str) -> None:
        """A line above the bars."""
        self._line("!", "yellow", text)

    def close(self, *, finished: bool) -> None:
        """The line of the last stage; the bars go."""
        self._end(finished=finished)
        self._live.stop()

    def _end(self, *, finished: bool) -> None:
        if (seconds := self._clock.end()) is not None:
            sign, style, how = ("✓", "green", "") if finished else ("✗", "red", "stopped after ")
            self._line(sign, style, self._clock.name, f"{how}{span(seconds)}")

    def _line(self, sign: str, style: str, name: str, rest: str = "") -> None:
        self._console.print(Text.assemble((sign, style), f" {name}", (f"  {rest}" if rest else "", "dim")))

    def _draw(self) -> Group:
        name = self._clock.name or "getting ready"
        fraction, left = self._clock.fraction, clock_time(self._clock.stage_left())
        rows = [self._row(self._spinner, name, fraction, left)]
        run_left, spent = self._clock.run_left(), self._clock.spent()
        if run_left is not None:
            rows.append(self._row(Text(" "), "whole run", spent / (spent + run_left), clock_time(run_left)))
        grid = Table.grid(padding=(0, 1))
        for _ in rows[0]:
            grid.add_column(no_wrap=True)
        for row in rows:
            grid.add_row(*row)
        note = [Text(f"  {self._note}", style="dim", overflow="ellipsis", no_wrap=True)] if self._note else []
        return Group(grid, *note)

    def _row(
        self, sign: Spinner | Text, name: str, fraction: float, left: str
    ) -> tuple[Spinner | Text, Text, ProgressBar, Text, Text]:
        width = 20 if self._console.width < 100 else 40
        if not fraction:  # a stage that does not tell how far it is
            return sign, Text(name), ProgressBar(pulse=True, width=width), Text(""), Text(left, style="cyan")
        bar = ProgressBar(total=1.0, completed=fraction, width=width)
        return sign, Text(name), bar, Text(f"{100 * fraction:3.0f} %"), Text(left, style="cyan")
