"""`edgekd init`: a folder to start from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgekd.cli import options
from edgekd.cli.render import Outcome

if TYPE_CHECKING:
    import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("init")(init)


def init(folder: options.NewFolder, as_json: options.AsJson = False) -> Outcome:
    """Write a recipe that runs as it stands into a new folder.

    Beside it: its JSON Schema, so that editors complete and check it, and a .gitignore. Nothing is overwritten.

    \b
    edgekd init my-project
    edgekd run my-project/recipe.toml
    """
    from edgekd.starter import write_starter

    written = [str(path) for path in write_starter(folder)]
    return Outcome(
        as_json,
        lambda: json.dumps({"written": written}, indent=2),
        lambda: [*(f"wrote {path}" for path in written), f"Next: edgekd run {written[0]}"],
    )
