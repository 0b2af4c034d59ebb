"""`edgekd verify`: whether every file of a run is what was sealed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgekd.cli import options
from edgekd.cli.render import Outcome, table

if TYPE_CHECKING:
    import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("verify")(verify)


def verify(run: options.RunFolder, as_json: options.AsJson = False) -> Outcome:
    """Check that every file of a run is what was sealed.

    The hash of each file, and that what an artifact was made from is there. Exit code 3 if anything is damaged.

    \b
    edgekd verify runs/digits
    """
    from edgekd.cli.progress import watching

    with watching(quiet=True):
        from edgekd import pipeline

        rows = pipeline.verify(run)
    sound = all(row["ok"] for row in rows)
    cells = [
        (str(row["path"]), str(row["kind"] or "?"), "ok" if row["ok"] else "DAMAGED", str(row["problem"] or ""))
        for row in rows
    ]
    return Outcome(
        as_json,
        lambda: json.dumps({"ok": sound, "artifacts": rows}, indent=2),
        lambda: [table("Artifacts", ("artifact", "kind", "state", "problem"), cells)],
        0 if sound else 3,
    )
