"""The charts of report.html: intervals, sizes, latency distribution, latency over time, training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

from markupsafe import Markup

from edgekd import _report_format as number
from edgekd._svg import Frame, Scale, drawing, legend, line, path, shortened, text, tick_label, titled

__all__ = ["Bar", "Interval", "bar_chart", "curve_chart", "ecdf_chart", "interval_chart", "timeline_chart"]

WIDTH = 420.0  # a phone shows it at 0.85, half a desktop page at 1.2: text stays readable on both
_FAR = 3.0  # a budget this many times the slowest query would squeeze the curves: break the axis
_WIDE = 20.0  # values over more than this ratio get a logarithmic axis
_MOST_POINTS = 600


@dataclass(frozen=True)
class Interval:
    """A row of an interval chart: a value with its bounds, in the chart's unit, and the text beside it."""

    name: str
    detail: str
    value: float
    low: float
    high: float
    shown: str


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: a value >= 0 in the chart's unit, and the text beside it."""

    name: str
    detail: str
    value: float
    shown: str


def interval_chart(rows: Sequence[Interval], *, name: str, x_label: str, reference: float | None = None) -> Markup:
    """Dots with intervals, one row each; `reference` is a value to compare with (0 for differences)."""
    left, right = _gutters(rows)
    values = [row.low for row in rows] + [row.high for row in rows] + ([] if reference is None else [reference])
    spread = max(values) - min(values) or abs(max(values)) or 1.0
    x = Scale(min(values) - 0.05 * spread, max(values) + 0.05 * spread, left, WIDTH - right)
    height = _row_y(len(rows)) + 32
    parts = [_vertical_grid(x, _row_y(len(rows)) - 8, x_label)]
    if reference is not None:
        parts.append(line(x.at(reference), 0, x.at(reference), _row_y(len(rows)) - 8, "reference"))
    for index, row in enumerate(rows):
        y = _row_y(index) + 14
        mark = line(x.at(row.low), y, x.at(row.high), y, "interval") + path([(x.at(row.value), y)], "dot", dots=True)
        parts += [_row_names(row, index, left), titled(mark, f"{row.name} {row.detail}: {row.shown}")]
        parts.append(text(WIDTH, y + 4, row.shown, "value", anchor="end"))
    return drawing(WIDTH, height, name, Markup("").join(parts))


def bar_chart(rows: Sequence[Bar], *, name: str, x_label: str) -> Markup:
    """Horizontal bars from zero, one row each."""
    left, right = _gutters(rows)
    x = Scale(0.0, max(row.value for row in rows) or 1.0, left, WIDTH - right)
    parts = [_vertical_grid(x, _row_y(len(rows)) - 8, x_label)]
    for index, row in enumerate(rows):
        y = _row_y(index) + 14
        bar = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="14" rx="2" class="bar"/>').format(
            left, y - 7, max(1.0, x.at(row.value) - left)
        )
        parts += [_row_names(row, index, left), titled(bar, f"{row.name} {row.detail}: {row.shown}")]
        parts.append(text(WIDTH, y + 4, row.shown, "value", anchor="end"))
    return drawing(WIDTH, _row_y(len(rows)) + 32, name, Markup("").join(parts))


def ecdf_chart(samples: Mapping[str, Sequence[float]], *, budget_ms: float | None, percentile: float | None) -> Markup:
    """Share of queries that were at least as fast, per series, with the budget as a line.

    A budget far beyond every query stands behind a break of the axis, so that the curves keep their shape.
    """
    slowest, fastest = max(map(max, samples.values())), min(map(min, samples.values()))
    near = budget_ms is not None and budget_ms <= _FAR * slowest
    far = budget_ms is not None and not near
    marks, top = legend(list(samples), WIDTH)
    high = max(slowest, budget_ms) if near and budget_ms is not None else slowest
    low = min(fastest, budget_ms) if near and budget_ms is not None else fastest
    frame = Frame(_padded(low, high, 44, WIDTH - (78 if far else 14)), Scale(0.0, 1.0, top + 252.0, top + 32.0))
    ticks = [(share, f"{100 * share:.0f}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts = [marks, frame.axes(_milliseconds(frame.x), "% of queries", y_ticks=ticks)]
    if percentile is not None:
        y = frame.y.at(percentile / 100)
        parts += [line(44, y, frame.x.end, y, "reference"), text(38, y + 4, f"p{percentile:g}", "tick", anchor="end")]
    parts += [path(_steps(values, frame), f"series s{i % 6}") for i, values in enumerate(samples.values())]
    if budget_ms is not None:
        parts.append(_budget_line(frame, budget_ms, far=far))
    return drawing(WIDTH, top + 296, _ecdf_name(samples, budget_ms), Markup("").join(parts))


def timeline_chart(samples: Mapping[str, Sequence[float]], *, budget_ms: float | None) -> Markup:
    """Every query in the order it ran; drift and hiccups show here and not in a percentile."""
    slowest, fastest = max(map(max, samples.values())), min(map(min, samples.values()))
    near = budget_ms is not None and fastest / _FAR <= budget_ms <= _FAR * slowest
    inside = [slowest, fastest, budget_ms] if near and budget_ms is not None else [slowest, fastest]
    marks, top = legend(list(samples), WIDTH, dots=True)
    y = _padded(min(inside), max(inside), top + 252.0, top + 32.0)
    frame = Frame(Scale(0.0, float(max(map(len, samples.values()))), 44, WIDTH - 14), y, whole_x=True)
    parts = [marks, frame.axes("query, in the order it ran", _milliseconds(y))]
    for index, values in enumerate(samples.values()):
        kept = _thinned(values)
        parts.append(path([(frame.x.at(i + 1), y.at(v)) for i, v in kept], f"series dots s{index % 6}", dots=True))
    if near and budget_ms is not None:
        at = y.at(budget_ms)
        parts += [
            line(44, at, WIDTH - 14, at, "budget"),
            text(WIDTH - 14, at - 5, "budget", "budget-note", anchor="end"),
        ]
    name = f"Latency of every query over time for {', '.join(samples)}: {fastest:.3g} to {slowest:.3g} ms."
    return drawing(WIDTH, top + 296, name, Markup("").join(parts))


def curve_chart(series: Mapping[str, Sequence[Sequence[tuple[float, float]]]], *, name: str, y_label: str) -> Markup:
    """Lines over epochs; a series may hold several lines (repeats with other seeds), drawn alike."""
    points = [point for lines in series.values() for one in lines for point in one]
    marks, top = legend(list(series), WIDTH)
    y = _padded(min(v for _, v in points), max(v for _, v in points), top + 252.0, top + 32.0)
    last = max(epoch for epoch, _ in points)
    first = min(epoch for epoch, _ in points)
    frame = Frame(
        Scale(first if last > first else first - 1, last if last > first else last + 1, 44, WIDTH - 14), y, whole_x=True
    )
    parts = [marks, frame.axes("epoch", f"{y_label}, log scale" if y.log else y_label)]
    for index, lines in enumerate(series.values()):
        for one in lines:
            at = [(frame.x.at(epoch), y.at(value)) for epoch, value in one]
            # a single epoch has no line to draw
            parts.append(path(at, f"series s{index % 6}{' dots' if len(at) == 1 else ''}", dots=len(at) == 1))
    return drawing(WIDTH, top + 296, name, Markup("").join(parts))


def _gutters(rows: Sequence[Interval] | Sequence[Bar]) -> tuple[float, float]:
    """Widths left and right of the marks for the names and the values."""
    names = max(max(len(row.name) * 7.3, len(row.detail) * 6.2) for row in rows)
    return min(170.0, names + 14), max(len(row.shown) for row in rows) * 7.0 + 12


def _row_y(index: int) -> float:
    return 6 + 36.0 * index


def _row_names(row: Interval | Bar, index: int, left: float) -> Markup:
    y = _row_y(index) + 14
    if not row.detail:
        return text(0, y + 4, shortened(row.name, int((left - 8) / 7)), "name", anchor="start")
    return text(0, y - 2, shortened(row.name, int((left - 8) / 7)), "name", anchor="start") + text(
        0, y + 11, shortened(row.detail, int((left - 8) / 6)), "note", anchor="start"
    )


def _vertical_grid(x: Scale, bottom: float, x_label: str) -> Markup:
    parts = [line(x.start, bottom, x.end, bottom, "axis")]
    for tick in x.ticks(4):
        at = x.at(tick)
        parts += [line(at, 0, at, bottom, "grid"), text(at, bottom + 15, tick_label(tick), "tick")]
    parts.append(text((x.start + x.end) / 2, bottom + 33, x_label, "label"))
    return Markup("").join(parts)


def _padded(low: float, high: float, start: float, end: float) -> Scale:
    """A scale with some air around the values: logarithmic if they span decades, never below 0 by air alone."""
    if low > 0 and high / low > _WIDE:
        return Scale(low / 1.15, high * 1.15, start, end, log=True)
    air = 0.05 * (high - low) or abs(high) * 0.05 or 0.5
    return Scale(max(0.0, low - air) if low >= 0 else low - air, high + air, start, end)


def _milliseconds(scale: Scale) -> str:
    return "ms, log scale" if scale.log else "ms"


def _steps(values: Sequence[float], frame: Frame) -> list[tuple[float, float]]:
    """The corners of the empirical distribution, from (fastest, 0) to (slowest, 1)."""
    ordered = sorted(values)
    n = len(ordered)
    kept = (
        range(n) if n <= _MOST_POINTS else sorted({round(i * (n - 1) / _MOST_POINTS) for i in range(_MOST_POINTS + 1)})
    )
    points, before = [], 0.0
    for index in kept:
        x = frame.x.at(ordered[index])
        points += [(x, frame.y.at(before)), (x, frame.y.at((index + 1) / n))]
        before = (index + 1) / n
    return points


def _thinned(values: Sequence[float]) -> list[tuple[int, float]]:
    """At most about `_MOST_POINTS` points: the fastest and slowest of each stretch, so that no hiccup is lost."""
    if len(values) <= _MOST_POINTS:
        return list(enumerate(values))
    stretch = ceil(2 * len(values) / _MOST_POINTS)
    kept: set[int] = set()
    for start in range(0, len(values), stretch):
        part = range(start, min(start + stretch, len(values)))
        kept |= {min(part, key=values.__getitem__), max(part, key=values.__getitem__)}
    return [(index, values[index]) for index in sorted(kept)]


def _budget_line(frame: Frame, budget_ms: float, *, far: bool) -> Markup:
    top, bottom = frame.y.end, frame.y.start
    if not far:
        x = frame.x.at(budget_ms)
        # the label keeps clear of the y axis' own label at the left
        return line(x, top - 4, x, bottom, "budget") + text(max(x, 108.0), top - 10, "budget", "budget-note")
    gap, x = frame.x.end + 16, WIDTH - 26
    parts = [
        line(frame.x.end, bottom, gap - 3, bottom, "axis"),
        line(gap - 6, bottom + 6, gap, bottom - 6, "axis"),
        line(gap, bottom + 6, gap + 6, bottom - 6, "axis"),
        line(gap + 3, bottom, WIDTH, bottom, "axis"),
        line(x, top - 4, x, bottom, "budget"),
        text(x, top - 10, "budget", "budget-note"),
        text(x, bottom + 17, tick_label(float(f"{budget_ms:.3g}")), "tick"),
    ]
    return Markup("").join(parts)


def _ecdf_name(samples: Mapping[str, Sequence[float]], budget_ms: float | None) -> str:
    series = [
        f"{name}: median {number.number(median(values))} ms, slowest {number.number(max(values))} ms"
        for name, values in samples.items()
    ]
    budget = "" if budget_ms is None else f" Budget: {number.number(budget_ms)} ms."
    return f"Distribution of latency. {'; '.join(series)}.{budget}"
