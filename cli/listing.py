"""`edgekd list`: what recipes can name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgekd.cli import options
from edgekd.cli.render import Outcome, table
from edgekd.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import typer

    from edgekd.catalog import Catalog

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("list")(list_members)


def list_members(
    catalog: options.CatalogName = None, member: options.MemberName = None, as_json: options.AsJson = False
) -> Outcome:
    """List what a recipe can name; of one member, its options.

    \b
    edgekd list
    edgekd list losses
    edgekd list losses kd
    """
    from edgekd.catalog import CATALOGS

    if catalog is not None and catalog not in CATALOGS:
        raise UsageError(f"There is no catalog '{catalog}'. {did_you_mean(catalog, CATALOGS)}")
    if catalog is not None and member is not None:
        return _one(CATALOGS[catalog], member, as_json)
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


def _one(catalog: Catalog, name: str, as_json: bool) -> Outcome:
    """A member's options, from its typed model: the only place that imports it."""
    fields = catalog.options(name).model_fields
    rows = [
        {
            "option": key,
            "type": str(getattr(field.annotation, "__name__", field.annotation)).replace("typing.", ""),
            "default": None if field.is_required() else field.default,
            "required": field.is_required(),
            "what": field.description or "",
        }
        for key, field in fields.items()
    ]
    summary = catalog.summary(name)
    return Outcome(
        as_json,
        lambda: json.dumps({"name": name, "summary": summary, "options": rows}, indent=2, default=str),
        lambda: [
            f"{name}: {summary}",
            table(
                "options",
                ("option", "type", "default", "what it is"),
                [
                    (
                        str(row["option"]),
                        str(row["type"]),
                        "(must be given)" if row["required"] else repr(row["default"]),
                        str(row["what"]),
                    )
                    for row in rows
                ],
            )
            if rows
            else "It has no options.",
        ],
    )
