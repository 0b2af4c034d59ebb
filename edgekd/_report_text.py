"""The terminal and Markdown forms of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgekd import _report_format as text
from edgekd._report_model import Report, Verdict
from edgekd._report_tables import tables
from edgekd._table import TONES, Table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

__all__ = ["budget_sentence", "escaped", "markdown", "markdown_table", "rich_table", "terminal"]

# the terminal shows what decides; the files hold the rest
_TERMINAL = (
    "ladder",
    "repeats",
    "paired",
    "fidelity",
    "latency",
    "baseline",
    "end_to_end",
    "int8_vs_float",
    "worth",
    "threads",
    "sustained",
    "mobile",
    "placement",
    "golden",
    "devices",
    "fusion",
    "islands",
    "mixed",
    "parity",
)
_TERMINAL_LAST = ("engines", "training", "stages")
_STYLES = {"": "", "good": "green", "bad": "bold red", "unsure": "yellow"}


def terminal(report: Report) -> list[RenderableType]:
    """The tables that decide, then the verdict last, where the eye of a terminal's user rests."""
    from rich.padding import Padding
    from rich.text import Text

    built = tables(report)
    shown: list[RenderableType] = [
        Padding(rich_table(built[key]), (0, 0, 1, 0)) for key in (*_TERMINAL, *_TERMINAL_LAST) if key in built
    ]
    if report.notes:
        shown.append(Padding(Text("\n".join(f"Note: {note}" for note in report.notes)), (0, 0, 1, 0)))
    if report.verdict:
        shown.append(_rich_verdict(report.verdict))
    return shown


def markdown(report: Report) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    parts = [f"# {escaped(report.name)}"]
    facts = [fact for fact in (report.created_utc, _version(report)) if fact]
    if facts:
        parts.append(escaped(" · ".join(facts)))
    if report.verdict:
        lines = [f"**{report.verdict.overall}**", *filter(None, [budget_sentence(report.verdict)])]
        parts.append("  \n".join([lines[0], *map(escaped, lines[1:])]))
        parts.append("\n".join(f"- {escaped(reason)}" for reason in report.verdict.reasons))
    if report.notes:
        parts.append("\n".join(f"> {escaped(note)}" for note in report.notes))
    parts += [markdown_table(table) for table in tables(report).values()]
    if report.recipe:
        parts.append(f"## Recipe\n\n```toml\n{text.toml(report.recipe).strip()}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def budget_sentence(verdict: Verdict) -> str:
    """What was measured against which budget; empty without a budget."""
    if verdict.budget_ms is None:
        return ""
    which = f"p{verdict.percentile:g}" if verdict.percentile is not None else "latency"
    if verdict.budget_is == "end_to_end":
        which = f"end-to-end {which}"
    what = " ".join(part for part in (verdict.rung, verdict.target) if part)
    where = f" on {verdict.device}" if verdict.device else ""
    confidence = "" if verdict.confidence is None else f" at {100 * verdict.confidence:g} % confidence"
    measured = "not measured" if verdict.measured_ms is None else f"{text.number(verdict.measured_ms)} ms"
    subject = f"{which} of {what}{where}" if what else which
    return f"{subject}: {measured}{confidence}, budget {text.number(verdict.budget_ms)} ms"


def rich_table(table: Table) -> RichTable:
    """A table for the terminal, without the columns that are details."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    drawn.show_edge, drawn.pad_edge, drawn.padding = False, False, (0, 1, 0, 0)
    shown = [index for index, column in enumerate(table.columns) if not column.detail]
    for index in shown:
        column = table.columns[index]
        # names may fold where there is little room; a folded number would be two wrong numbers
        words = [*column.label.split(), *(row[index].text for row in table.rows)]
        width = max(map(len, words)) if column.numeric else None
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        drawn.add_column(column.label, justify=justify, width=width, overflow="fold")
    for row in table.rows:
        # Text, not markup: names from a recipe may hold square brackets
        drawn.add_row(*(Text(row[index].text, style=_STYLES[row[index].tone]) for index in shown))
    return drawn


def _rich_verdict(verdict: Verdict) -> RenderableType:
    from rich.panel import Panel
    from rich.text import Text

    style = _STYLES[TONES[verdict.overall]]
    body = Text()
    body.append(verdict.overall, style=f"bold {style}")
    for line in filter(None, [budget_sentence(verdict)]):
        body.append(f"\n{line}")
    for reason in verdict.reasons:
        body.append(f"\n- {reason}")
    return Panel(body, title="Verdict", title_align="left", border_style=style)


def markdown_table(table: Table) -> str:
    """A table with its heading and note in Markdown."""
    head = "| " + " | ".join(escaped(column.label) for column in table.columns) + " |"
    rule = "|" + "|".join(" ---: " if column.numeric else " --- " for column in table.columns) + "|"
    rows = ["| " + " | ".join(escaped(cell.text) for cell in row) + " |" for row in table.rows]
    note = f"\n\n{escaped(table.note)}" if table.note else ""
    return f"## {table.title}\n\n" + "\n".join([head, rule, *rows]) + note


def _version(report: Report) -> str:
    return f"edgekd {report.edgekd_version}" if report.edgekd_version else ""


def escaped(value: str) -> str:
    """Keep a value from becoming a column, a heading or HTML."""
    for sign in ("\\", "|", "<", "*", "`", "["):
        value = value.replace(sign, f"\\{sign}")
    return " ".join(value.split())
