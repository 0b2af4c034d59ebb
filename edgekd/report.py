"""One run's findings as report.json, a terminal summary, Markdown and a self-contained HTML page.

Nothing here measures, prints or writes: a `Report` goes in, text or rich renderables come out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from edgekd._ladder import Paired, Parity, Rung
from edgekd._report_file_model import Engine, FloatIsland, Fusion, Mobile, Operator, ParityRow
from edgekd._report_model import Curve, Int8VsFloat, Latency, Lineage, Outcome, Report, Stage, TrainingCost, Verdict
from edgekd._sweep_model import Sweep, SweepRow
from edgekd.errors import ArtifactError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekd.targets._base import Audit

__all__ = [
    "Curve",
    "Engine",
    "FloatIsland",
    "Fusion",
    "Int8VsFloat",
    "Latency",
    "Lineage",
    "Mobile",
    "Operator",
    "Outcome",
    "Paired",
    "Parity",
    "ParityRow",
    "Report",
    "Rung",
    "Stage",
    "Sweep",
    "SweepRow",
    "TrainingCost",
    "Verdict",
    "from_json",
    "fusion_of",
    "render_html",
    "render_markdown",
    "render_sweep_markdown",
    "render_sweep_terminal",
    "render_terminal",
    "sweep_to_json",
    "to_json",
]


def to_json(report: Report) -> str:
    """The content of report.json: indented, keys in the contract's order, a newline at the end."""
    return report.model_dump_json(indent=2) + "\n"


def from_json(content: str | bytes, *, source: str = "report.json") -> Report:
    """Read report.json; fields that a newer edgekd added are skipped.

    Args:
        content: the file's content.
        source: its name, for messages.

    Raises:
        ArtifactError: it is damaged, or its schema is another version's.
    """
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ArtifactError(f"{source} is damaged: {error}. Run `edgekd run RECIPE` again to rebuild it.") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != 1:
        raise ArtifactError(
            f"{source} has schema_version {version!r}, this edgekd reads 1. Use the edgekd that wrote it, or run"
            " `edgekd report` again."
        )
    try:
        return Report.model_validate_json(json.dumps(_known(values)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{source} does not hold a report: {where}: {first['msg']} ({error.error_count()} problems in all)."
            " Run `edgekd run RECIPE` again to rebuild it."
        ) from error


def fusion_of(audit: Audit) -> Fusion:
    """A target's audit as a row of the report."""
    return Fusion(
        target=audit.target,
        quantizable=audit.quantizable,
        int8=audit.int8,
        coverage=audit.coverage,
        float_islands=[
            FloatIsland(name=one.name, op=one.op, cause=one.cause, remedy=one.remedy) for one in audit.islands
        ],
        legitimate=dict(audit.legitimate),
        operators=dict(audit.operators),
    )


def render_terminal(report: Report) -> list[RenderableType]:
    """What decides, as rich renderables to print in order; the verdict comes last."""
    from edgekd._report_text import terminal

    return terminal(report)


def render_markdown(report: Report) -> str:
    """The whole report as GitHub-flavoured Markdown (report.md)."""
    from edgekd._report_text import markdown

    return markdown(report)


def render_html(report: Report) -> str:
    """The whole report as one self-contained page (report.html): no scripts, nothing fetched."""
    from edgekd._report_html import html

    return html(report)


def sweep_to_json(found: Sweep) -> str:
    """The content of sweep.json: indented, a newline at the end."""
    return found.model_dump_json(indent=2) + "\n"


def render_sweep_terminal(found: Sweep) -> list[RenderableType]:
    """The ranking of a sweep, as rich renderables to print in order."""
    from rich.padding import Padding

    from edgekd._report_sweep import failures, ranking
    from edgekd._report_text import rich_table

    built = [table for table in (ranking(found), failures(found)) if table.rows]
    shown: list[RenderableType] = [Padding(rich_table(table), (0, 0, 1, 0)) for table in built]
    return [*shown, built[0].note]


def render_sweep_markdown(found: Sweep) -> str:
    """The ranking of a sweep as GitHub-flavoured Markdown (sweep.md)."""
    from edgekd._report_sweep import failures, ranking
    from edgekd._report_text import markdown_table

    built = [table for table in (ranking(found), failures(found)) if table.rows]
    facts = f"# {found.name}\n\n{found.created_utc} · edgekd {found.edgekd_version}"
    return "\n\n".join([facts, *map(markdown_table, built)]) + "\n"


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Drop the fields that the models refuse as unknown; everything else is left for them to judge."""
    try:
        Report.model_validate_json(json.dumps(values))
    except ValidationError as error:
        for one in error.errors():
            if one["type"] == "extra_forbidden":
                table: Any = values
                for part in one["loc"][:-1]:
                    table = table[part]
                del table[one["loc"][-1]]
    return values
