"""The table of a sweep: the student alone on top, then every combination, the best on validation first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd import _report_format as text
from edgekd._repeats import Repeats
from edgekd._sweep_model import Sweep, SweepRow
from edgekd._table import Cell, Table, Tone, cells, columns_of

__all__ = ["failures", "ranking"]

_WRONG_BY_CHANCE = 20  # that many combinations, and one 95 % interval misses by chance


def ranking(found: Sweep) -> Table:
    """Every combination with its seeds, ranked by validation accuracy."""
    columns = columns_of(
        ">Rank",
        "=Changed",
        ">Validation accuracy",
        "~>Standard deviation, points",
        "~>95 % interval",
        ">Against alone, points",
        ">95 % interval, points",
        ">Test accuracy",
        "~>Test, first seed against alone, points",
        "~>95 % interval, points",
        "~>Agreement with teacher",
    )
    several = len(found.baselines) > 1
    alone = [
        _row(f"alone {number}" if several else "alone", _said(row.changes), row)
        for number, row in enumerate(found.baselines, start=1)
    ]
    rows = [
        _row(text.count(row.rank), _said(row.changes) + _which(found, row), row)
        for row in found.rows
        if row.failed is None
    ]
    return Table("sweep", "Sweep", columns, (*alone, *rows), _note(found))


def failures(found: Sweep) -> Table:
    """Combinations whose training diverged."""
    rows = [cells(_said(row.changes), row.failed) for row in found.rows if row.failed is not None]
    return Table("failures", "Diverged", columns_of("=Changed", "=What happened"), tuple(rows))


def _row(rank: str, changed: str, row: SweepRow) -> tuple[Cell, ...]:
    tests, paired = row.test, row.test_paired
    return cells(
        rank,
        changed,
        _mean(row.val),
        text.MISSING if row.val is None or row.val.sd is None else f"{100 * row.val.sd:.2f}",
        text.percent_interval(row.val.ci95 if row.val else None),
        Cell(text.points(row.difference.mean if row.difference else None, unit=False), _tone(row.difference)),
        text.MISSING if not row.difference or not row.difference.ci95 else text.points_interval(row.difference.ci95),
        _mean(tests),
        text.points(paired.difference if paired else None, unit=False),
        text.points_interval(paired.ci95) if paired else text.MISSING,
        text.percent(row.agreement),
    )


def _mean(values: Repeats | None) -> str:
    return text.percent(values.mean if values else None)


def _tone(difference: Repeats | None) -> Tone:
    if difference is None or difference.ci95 is None:
        return ""
    if difference.ci95[0] > 0:
        return "good"
    return "bad" if difference.ci95[1] < 0 else ""


def _said(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {text.toml_value(value)}" for key, value in changes.items()) or "no teacher"


def _which(found: Sweep, row: SweepRow) -> str:
    """Which student alone a row is held against, where there are several."""
    if len(found.baselines) < 2 or row.baseline is None:
        return ""
    return f" (against alone {row.baseline + 1})"


def _note(found: Sweep) -> str:
    seeds = "1 seed, so without an interval" if found.seeds == 1 else f"{found.seeds} seeds"
    sentences = [
        f"Ranked by the mean accuracy on {text.count(found.n_val)} validation samples over {seeds}; intervals are"
        " Student's t over seeds. Against alone: minus the same student trained without a teacher, seed by seed.",
        f"Test: {text.count(found.n_test)} samples, mean over seeds; it had no part in the ranking. First seed against"
        " alone: on the same samples, Newcombe's paired interval.",
    ]
    if found.seeds == 1:
        sentences.append("Without distill.repeats nobody can tell a good combination from a good seed.")
    if len(found.rows) >= _WRONG_BY_CHANCE:
        sentences.append(
            f"Of {len(found.rows)} combinations, about {round(len(found.rows) / _WRONG_BY_CHANCE)} would look better or"
            " worse beyond their interval by chance alone."
        )
    return " ".join(sentences)
