"""The charts of report.html about devices: a long run with clock and heat, numbers of threads, end to end by part."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from edgekd import _report_format as text
from edgekd import _svg as svg
from edgekd._report_device_model import EndToEndRow, Sustained
from edgekd._report_model import Latency, Report

__all__ = ["device_charts"]

_WIDTH = 420.0
_LEFT, _RIGHT = 44.0, 14.0
_TALL, _LOW = 150.0, 70.0
_ROW, _BAR = 46.0, 18.0
_INSIDE = 34.0
_PARTS = ("preprocess", "inference", "postprocess")


def device_charts(report: Report) -> dict[str, Markup]:
    """Charts that stand above the table of the same key; nothing of an emulated device is drawn."""
    charts = {}
    if long_runs := [row for row in report.sustained if row.is_latency and row.points]:
        charts["sustained"] = Markup("").join(_sustained(row) for row in long_runs)
    if whole := [row for row in report.end_to_end if row.is_latency]:
        charts["end_to_end"] = _end_to_end(whole)
    if swept := _swept(report):
        charts["threads"] = _threads(swept)
    return charts


def _sustained(row: Sustained) -> Markup:
    """Latency over time, and below it, on the same axis of time, clock and temperature where they are told."""
    last = max(row.seconds, 1e-3)
    x = svg.Scale(0.0, last, _LEFT, _WIDTH - _RIGHT)
    held = [one.at_s for one in row.readings if one.throttled]
    clocks = [(one.at_s, one.clock_mhz) for one in row.readings if one.clock_mhz is not None]
    heat = [(one.at_s, one.temperature_c) for one in row.readings if one.temperature_c is not None]
    marks, top = svg.legend([f"median of {row.rung} on {row.device}", "slowest"], _WIDTH)
    slowest = [(one.at_s, one.max_ms) for one in row.points]
    medians = [(one.at_s, one.p50_ms) for one in row.points]
    panels: list[tuple[str, list[tuple[float, float]], float]] = []
    parts = [marks]
    top += 32
    y = _scale([value for _, value in (*slowest, *medians)], top + _TALL, top)
    parts += [_panel(x, y, "ms, log scale" if y.log else "ms"), *_held(held, x, y)]
    parts += [svg.path(_at(medians, x, y), "series s0"), svg.path(_at(slowest, x, y), "series dots s1", dots=True)]
    top += _TALL
    if clocks:
        panels.append(("clock, MHz", clocks, _LOW))
    if heat:
        panels.append(("temperature, °C", heat, _LOW))
    for label, series, height in panels:
        top += 44
        y = _scale([value for _, value in series], top + height, top)
        parts += [_panel(x, y, label), *_held(held, x, y), svg.path(_at(series, x, y), "series s0")]
        top += height
    parts += [svg.text(x.at(tick), top + 17, svg.tick_label(tick), "tick") for tick in x.ticks(5)]
    parts.append(svg.text((x.start + x.end) / 2, top + 36, "s since the first query", "label"))
    name = f"Latency of {row.rung} on {row.device} over {last:.3g} s, {text.number(row.p50_ms)} ms at the median."
    return svg.drawing(_WIDTH, top + 46, name, Markup("").join(parts))


def _panel(x: svg.Scale, y: svg.Scale, label: str) -> Markup:
    parts = [svg.line(x.start, y.start, x.end, y.start, "axis")]
    for tick in y.ticks(4):
        at = y.at(tick)
        parts += [
            svg.line(x.start, at, x.end, at, "grid"),
            svg.text(x.start - 6, at + 4, svg.tick_label(tick), "tick", anchor="end"),
        ]
    parts.append(svg.text(0, y.end - 15, label, "label", anchor="start"))
    return Markup("").join(parts)


def _held(at_s: Sequence[float], x: svg.Scale, y: svg.Scale) -> list[Markup]:
    """Moments at which the device said that it was held back."""
    return [svg.line(x.at(one), y.start, x.at(one), y.end, "budget") for one in at_s if x.low <= one <= x.high]


def _at(series: Sequence[tuple[float, float]], x: svg.Scale, y: svg.Scale) -> list[tuple[float, float]]:
    return [(x.at(min(max(when, x.low), x.high)), y.at(value)) for when, value in series]


def _scale(values: Sequence[float], start: float, end: float) -> svg.Scale:
    low, high = min(values), max(values)
    if low > 0 and high / low > 20:
        return svg.Scale(low / 1.15, high * 1.15, start, end, log=True)
    air = 0.08 * (high - low) or abs(high) * 0.05 or 0.5
    return svg.Scale(max(0.0, low - air) if low >= 0 else low - air, high + air, start, end)


def _swept(report: Report) -> dict[str, list[Latency]]:
    """Rows with more than one number of threads, by what they are of."""
    groups: dict[str, list[Latency]] = {}
    for row in report.latency:
        if row.is_latency and row.p50_ms is not None:
            groups.setdefault(f"{row.rung} on {row.device}", []).append(row)
    return {name: sorted(rows, key=lambda row: row.threads) for name, rows in groups.items() if len(rows) > 1}


def _threads(groups: dict[str, list[Latency]]) -> Markup:
    marks, top = svg.legend(list(groups), _WIDTH)
    rows = [row for group in groups.values() for row in group]
    counts = sorted({row.threads for row in rows})
    x = svg.Scale(0.5, len(counts) + 0.5, _LEFT, _WIDTH - _RIGHT)
    y = svg.Scale(0.0, 1.08 * max(row.p50_ms or 0.0 for row in rows), top + 192.0, top + 32.0)
    parts = [marks, _panel(x, y, "median, ms")]
    for index, group in enumerate(groups.values()):
        at = [(x.at(counts.index(row.threads) + 1), y.at(row.p50_ms or 0.0)) for row in group]
        parts += [svg.path(at, f"series s{index % 6}"), svg.path(at, f"series dots s{index % 6}", dots=True)]
    parts += [svg.text(x.at(place + 1), top + 209, str(count), "tick") for place, count in enumerate(counts)]
    parts.append(svg.text((x.start + x.end) / 2, top + 228, "threads", "label"))
    told = "; ".join(f"{row.rung} with {row.threads}: {text.number(row.p50_ms)} ms" for row in rows)
    return svg.drawing(_WIDTH, top + 236, f"Median latency by number of threads: {told}", Markup("").join(parts))


def _end_to_end(rows: Sequence[EndToEndRow]) -> Markup:
    """One bar a model, of its parts."""
    values = [(row.preprocess_p50_ms, row.inference_p50_ms, row.postprocess_p50_ms) for row in rows]
    shown = [f"{text.number(sum(parts))} ms" for parts in values]
    left = min(170.0, max(max(len(row.rung) * 7.3, len(row.device) * 6.2) for row in rows) + 14)
    x = svg.Scale(0.0, max(map(sum, values)) or 1.0, left, _WIDTH - max(map(len, shown)) * 7.0 - 12)
    drawn, top = _legend()
    bottom = top + _ROW * len(rows)
    parts = [drawn, svg.line(x.start, bottom, x.end, bottom, "axis")]
    for tick in x.ticks(4):
        at = x.at(tick)
        parts += [svg.line(at, top, at, bottom, "grid"), svg.text(at, bottom + 15, svg.tick_label(tick), "tick")]
    parts.append(svg.text((x.start + x.end) / 2, bottom + 33, "ms, medians of the parts", "label"))
    for index, (row, durations) in enumerate(zip(rows, values, strict=True)):
        y = top + _ROW * index + (_ROW - _BAR) / 2
        parts += [
            svg.text(0, y + 6, svg.shortened(row.rung, int((left - 8) / 7)), "name", anchor="start"),
            svg.text(0, y + 19, svg.shortened(row.device, int((left - 8) / 6)), "note", anchor="start"),
            _bar(row, durations, x, y),
            svg.text(_WIDTH, y + 13, shown[index], "value", anchor="end"),
        ]
    told = "; ".join(f"{row.rung} on {row.device} {one}" for row, one in zip(rows, shown, strict=True))
    return svg.drawing(_WIDTH, bottom + 40, f"End to end by part: {told}", Markup("").join(parts))


def _bar(row: EndToEndRow, durations: Sequence[float], x: svg.Scale, y: float) -> Markup:
    drawn, at, whole = Markup(""), 0.0, sum(durations) or 1.0
    for index, (name, duration) in enumerate(zip(_PARTS, durations, strict=True)):
        start, end = x.at(at), x.at(at + duration)
        at += duration
        # a hairline of paper between two parts, so that they differ without their colours
        segment = _rectangle(start, y, max(0.3, end - start - 1), _BAR, index)
        if end - start >= _INSIDE:
            segment += svg.text((start + end) / 2, y + 13, f"{100 * duration / whole:.0f} %", "inside")
        drawn += svg.titled(segment, f"{row.rung} on {row.device}, {name}: {text.number(duration)} ms")
    return drawn


def _legend() -> tuple[Markup, float]:
    drawn, x = Markup(""), 0.0
    for index, name in enumerate(_PARTS):
        drawn += _rectangle(x, 4, 10, 10, index) + svg.text(x + 15, 13, name, "tick", anchor="start")
        x += 15 + 6.7 * len(name) + 12
    return drawn, 24.0


def _rectangle(x: float, y: float, width: float, height: float, part: int) -> Markup:
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="p{}"/>').format(
        x, y, width, height, part
    )
