"""The report's part on the cost of training: throughput, memory, and where the time of a step goes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from edgekd import _report_format as text
from edgekd import _svg as svg
from edgekd._plots import WIDTH
from edgekd._report_model import Report, TrainingCost
from edgekd._step_clock import PARTS
from edgekd._table import Table, cells, columns_of, without_empty

__all__ = ["cost", "parts_chart", "step_parts"]

_GROUPS = {
    "data": ("data", "transfer"),
    "teacher": ("teacher", "cache"),
    "forward": ("forward",),
    "backward": ("backward",),
    "optimizer": ("optimizer",),
    "other": ("other",),
}
"""What the chart shows as one: as many as the page has colours."""

_REPEAT = re.compile(r"-seed[0-9]+$")
_ROW, _BAR = 30.0, 18.0
_INSIDE = 34.0  # a segment as wide as this holds its share


def cost(report: Report) -> Table:
    """Throughput, time and memory of every training stage."""
    columns = columns_of(
        "Stage", ">Images/s", ">Time", ">Step, ms", "Most of a step", ">Peak memory", "~>Peak GPU memory",
        "~Went on from", "~=Compiled",
    )  # fmt: skip
    rows = [
        cells(
            row.stage,
            text.number(row.images_per_s),
            text.duration(row.seconds),
            text.number(row.step_ms),
            _largest(row.parts_ms),
            text.mebibytes(row.peak_memory_mib),
            text.mebibytes(row.gpu_memory_mib),
            text.MISSING if row.resumed_step is None else f"step {text.count(row.resumed_step)} of {row.steps:,}",
            _compiled(row),
        )
        for row in report.training
    ]
    table = Table("training", "Cost of training", columns, tuple(rows), "Time counts validation, a step does not.")
    return without_empty(table, *(column.label for column in columns if column.detail), "Peak memory")


def step_parts(report: Report) -> Table:
    """Where the time of a step went, in shares of it."""
    labels = [name.capitalize() for name in PARTS]
    timed = [row for row in report.training if row.parts_ms]
    rows = [
        cells(row.stage, text.number(row.step_ms), *(_share(row.parts_ms, name) for name in PARTS)) for row in timed
    ]
    note = (
        "Data: waiting for the batch. Transfer: its way to the device. Cache: reading kept answers of the teacher."
        " Forward: student and losses."
    )
    columns = columns_of("Stage", ">Step, ms", *(f">{label}" for label in labels))
    return without_empty(Table("step_parts", "Time of a step", columns, tuple(rows), note), *labels)


def _largest(parts: Mapping[str, float]) -> str:
    name = max(parts, key=lambda one: parts[one], default=None)
    return text.MISSING if name is None else f"{name}, {_share(parts, name)}"


def _share(parts: Mapping[str, float], name: str) -> str:
    total = sum(parts.values())
    return text.percent(parts[name] / total, decimals=1) if name in parts and total else text.MISSING


def _compiled(row: TrainingCost) -> str:
    if row.compiled is None:
        return text.MISSING
    return f"{'yes' if row.compiled else 'no'}: {row.compile_reason or ''}".rstrip(": ")


def parts_chart(costs: Sequence[TrainingCost]) -> Markup:
    """The mean step of every training stage as one bar of its parts; empty where no step was timed.

    Repeats with other seeds are left out: they look like the first.
    """
    rows = [row for row in costs if row.step_ms and not _REPEAT.search(row.stage)]
    if not rows:
        return Markup("")
    names = [name for name in _GROUPS if any(_grouped(row)[name] for row in rows)]
    left = min(170.0, max(len(row.stage) for row in rows) * 7.3 + 14)
    longest = max(row.step_ms or 0.0 for row in rows)
    x = svg.Scale(0.0, longest, left, WIDTH - max(len(_total(row)) for row in rows) * 7.0 - 12)
    marks, top = _legend(names)
    parts = [marks, _grid(x, top, top + _ROW * len(rows))]
    for index, row in enumerate(rows):
        y = top + _ROW * index + (_ROW - _BAR) / 2
        named = svg.shortened(row.stage, int((left - 8) / 7))
        parts += [svg.text(0, y + 13, named, "name", anchor="start"), _bar(row, names, x, y)]
        parts.append(svg.text(WIDTH, y + 13, _total(row), "value", anchor="end"))
    spoken = "; ".join(f"{row.stage} {_total(row)}, {_largest(row.parts_ms)}" for row in rows)
    height = top + _ROW * len(rows) + 40
    return svg.drawing(WIDTH, height, f"Time of a step by part: {spoken}", Markup("").join(parts))


def _grouped(row: TrainingCost) -> dict[str, float]:
    return {name: sum(row.parts_ms.get(one, 0.0) for one in members) for name, members in _GROUPS.items()}


def _total(row: TrainingCost) -> str:
    return f"{text.number(row.step_ms)} ms"


def _bar(row: TrainingCost, names: Sequence[str], x: svg.Scale, y: float) -> Markup:
    drawn, at = Markup(""), 0.0
    grouped = _grouped(row)
    for name in names:
        start, end = x.at(at), x.at(at + grouped[name])
        at += grouped[name]
        if end - start < 0.3:
            continue
        share = grouped[name] / (row.step_ms or 1.0)
        # a hairline of paper between two parts, so that they differ without their colours
        segment = _rectangle(start, y, max(0.3, end - start - 1), _BAR, name)
        if end - start >= _INSIDE:
            segment += svg.text((start + end) / 2, y + 13, f"{100 * share:.0f} %", "inside")
        hover = f"{row.stage}, {name}: {text.number(grouped[name])} ms, {text.percent(share, decimals=1)}"
        drawn += svg.titled(segment, hover)
    return drawn


def _legend(names: Sequence[str]) -> tuple[Markup, float]:
    drawn, x = Markup(""), 0.0
    for name in names:
        drawn += _rectangle(x, 4, 10, 10, name) + svg.text(x + 15, 13, name, "tick", anchor="start")
        x += 15 + 6.7 * len(name) + 12
    return drawn, 24.0


def _rectangle(x: float, y: float, width: float, height: float, name: str) -> Markup:
    color = list(_GROUPS).index(name)
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="p{}"/>').format(
        x, y, width, height, color
    )


def _grid(x: svg.Scale, top: float, bottom: float) -> Markup:
    drawn = svg.line(x.start, bottom, x.end, bottom, "axis")
    for tick in x.ticks(4):
        at = x.at(tick)
        drawn += svg.line(at, top, at, bottom, "grid") + svg.text(at, bottom + 15, svg.tick_label(tick), "tick")
    return drawn + svg.text((x.start + x.end) / 2, bottom + 33, "ms a step", "label")
