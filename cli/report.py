"""`edgekd report`: the report of a run, written again and shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli import options
from edgekd.cli.render import Outcome

if TYPE_CHECKING:
    import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("report")(report)


def report(run: options.RunFolder, as_json: options.AsJson = False) -> Outcome:
    """Show a run's report, and write report.html and report.md again.

    \b
    edgekd report runs/digits
    edgekd report runs/digits --json | jq .verdict
    """
    from edgekd.cli.progress import watching

    with watching(quiet=True):
        from edgekd import pipeline

        found = pipeline.open_report(run)
        pipeline.write_report(found, run)
    from edgekd.report import render_terminal, to_json

    return Outcome(as_json, lambda: to_json(found), lambda: [*render_terminal(found), f"Report: {run / 'report.html'}"])
