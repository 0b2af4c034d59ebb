"""`edgekd audit`: which operators of a model file run as int8, why the others do not, and what each costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.cli import bench_options, options
from edgekd.cli.render import Outcome, table

if TYPE_CHECKING:
    import typer
    from rich.console import RenderableType

    from edgekd.audit import FileAudit, IslandRow

__all__ = ["register"]

_SHOWN_CAUSES = 40
_NAMED = 3
"""Of the operators with one cause, how many are named."""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("audit")(audit)


def audit(
    model: options.ModelFile,
    target: options.Target = None,
    data: options.Data = None,
    require_int8: options.RequireInt8 = False,
    threads: bench_options.Threads = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Say what of a model file runs as int8, and why the rest does not.

    Any ONNX file, ours or not. Exit code 1 if int8 was asked for and an operator that could run as int8 does not.

    \b
    edgekd audit model.onnx --target onnxruntime_x86
    edgekd audit model.onnx --target tensorrt --json
    """
    found = _found(model, target or "onnxruntime_x86", data, require_int8, threads or 1, quiet=quiet)
    return Outcome(as_json, lambda: found.model_dump_json(indent=2), lambda: _shown(found), 0 if found.passed else 1)


def _found(model: Path, target: str, data: Path | None, require_int8: bool, threads: int, *, quiet: bool) -> FileAudit:
    from edgekd.cli.progress import watching

    with watching(quiet=quiet) as watcher:
        from edgekd.audit import audit_file
        from edgekd.catalog import CATALOGS

        watcher.stage(model.name, cached=False)
        member = CATALOGS["targets"].load(target).member()
        return audit_file(model, target=member, data=data, require_int8=require_int8, threads=threads)


def _shown(found: FileAudit) -> list[RenderableType]:
    timed = found.total_us is not None
    parts: list[RenderableType] = [f"{found.file} for {found.target}", ""]
    if found.operators:
        parts.append(_operators(found, timed))
    if found.islands:
        parts += [*_islands(found), ""]
    if found.legitimate:
        rows = [(row.op, str(row.count), *_share(row.share, timed), row.reason) for row in found.legitimate]
        parts.append(table("Float by design", ("operator", "count", *_head(timed), "why"), rows))
    if found.conversions:
        rows = [(row.op, str(row.count), *_share(row.share, timed), row.place) for row in found.conversions]
        title = "Conversions at run time"
        if found.conversion_share is not None:
            title += _of_time(found.conversion_share)
        parts.append(table(title, ("operator", "count", *_head(timed), "where"), rows))
    parts += [f"Refused: {text}" for text in found.refusals]
    parts += [f"Note: {text}" for text in found.notes]
    return [*parts, _verdict(found)]


def _operators(found: FileAudit, timed: bool) -> RenderableType:
    title = "Operators" if found.total_us is None else f"Operators, {found.total_us / 1000:.3g} ms"
    rows = [
        (row.op, row.work if row.work != "unknown" else "", str(row.count), *_share(row.share, timed))
        for row in found.operators
    ]
    return table(title, ("operator", "runs as", "count", *_head(timed)), rows)


def _islands(found: FileAudit) -> list[str]:
    """One line a cause, the slowest first: a line may be copied and searched, a cell of a table is broken."""
    groups: dict[tuple[str, str], list[IslandRow]] = {}
    for row in found.islands:
        groups.setdefault((row.cause, row.remedy), []).append(row)
    lines = []
    for (cause, remedy), rows in groups.items():
        names = ", ".join(f"{row.op} '{row.name}'" for row in rows[:_NAMED])
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        share = None if rows[0].share is None else sum(row.share or 0.0 for row in rows)
        lines.append(f"  {names}{more}{_of_time(share)}: {cause}. Remedy: {remedy.rstrip('.')}.")
    left = len(lines) - _SHOWN_CAUSES
    return [
        f"Float islands: {len(found.islands)}",
        *lines[:_SHOWN_CAUSES],
        *([f"  and {left} more causes, see --json"] if left > 0 else []),
    ]


def _head(timed: bool) -> tuple[str, ...]:
    return ("time",) if timed else ()


def _share(share: float | None, timed: bool) -> tuple[str, ...]:
    return (_percent(share) if share is not None else "",) if timed else ()


def _of_time(share: float | None) -> str:
    return "" if share is None else f", {_percent(share)} of the time"


def _percent(share: float) -> str:
    from edgekd._report_format import percent

    return percent(share, decimals=1)


def _verdict(found: FileAudit) -> str:
    if not found.int8_asked:
        return "int8 was not asked for: the file has no Q/DQ and no 8-bit operator (--require-int8 asks)."
    if found.refusals:
        return f"FAIL: the file is refused. {found.quantizable} of its operators could run as int8."
    counted = f"{found.int8} of {found.quantizable} operators that can run as int8 do ({_percent(found.coverage)})."
    return f"PASS: {counted}" if found.passed else f"FAIL: {counted}"
