"""`edgekd list`: what recipes can name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgekd.cli import options
from edgekd.cli.render import Outcome, table
from edgekd.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("list")(list_members)


def list_members(catalog: options.CatalogName = None, as_json: options.AsJson = False) -> Outcome:
    """List what a recipe can name, and what each is.

    \b
    edgekd list
    edgekd list losses
    """
    from edgekd.catalog import CATALOGS

    if catalog is not None and catalog not in CATALOGS:
        raise UsageError(f"There is no catalog '{catalog}'. {did_you_mean(catalog, CATALOGS)}")
    names = list(CATALOGS) if catalog is None else [catalog]
    found = {
        name: [{"name": member, "summary": CATALOGS[name].summary(member)} for member in CATALOGS[name].names()]
        for name in names
    }
    return Outcome(
        as_json,
        lambda: json.dumps(found, indent=2),
        lambda: [
            table(title, ("name", "what it is"), [(row["name"], row["summary"]) for row in rows])
            for title, rows in found.items()
        ],
    )
