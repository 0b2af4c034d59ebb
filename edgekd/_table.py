"""A table before it is drawn: the same one becomes rich, Markdown and HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekd._report_format import MISSING
from edgekd._report_model import Outcome

__all__ = ["TONES", "Cell", "Column", "Table", "Tone", "cells", "columns_of", "label", "without_empty"]

Tone = Literal["", "good", "bad", "unsure"]
TONES: dict[Outcome, Tone] = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "unsure", "INVALID": "unsure"}


@dataclass(frozen=True)
class Cell:
    """One value: its text, and whether it is good news; the text alone must already say so."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Column:
    """A column.

    Args:
        label: its heading, with the unit.
        numeric: aligned to the right.
        detail: left out where there is little room (the terminal).
        prose: may wrap; the others are names and numbers, which may not.
    """

    label: str
    numeric: bool = False
    detail: bool = False
    prose: bool = False


@dataclass(frozen=True)
class Table:
    """A titled table; `note` says how to read it."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def label(rung: str, target: str | None) -> str:
    """A rung and, where it has one, its target."""
    return f"{rung} {target}" if target else rung


def cells(*values: str | Cell) -> tuple[Cell, ...]:
    return tuple(value if isinstance(value, Cell) else Cell(value) for value in values)


def columns_of(*specs: str) -> tuple[Column, ...]:
    """Leading signs: ">" is numeric, "~" is detail, "=" is prose."""
    columns = []
    for spec in specs:
        name = spec.lstrip("~>=")
        signs = spec[: len(spec) - len(name)]
        columns.append(Column(name, numeric=">" in signs, detail="~" in signs, prose="=" in signs))
    return tuple(columns)


def without_empty(table: Table, *labels: str) -> Table:
    """A table without those of the columns called `labels` that have a value in no row."""
    kept = [
        index
        for index, column in enumerate(table.columns)
        if column.label not in labels or any(row[index].text not in ("", MISSING) for row in table.rows)
    ]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return Table(table.key, table.title, tuple(table.columns[index] for index in kept), rows, table.note)
