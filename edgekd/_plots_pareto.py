"""The chart of mixed precision: every mixture by latency and metric, with what was restored to get there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from edgekd._plots import WIDTH
from edgekd._svg import Frame, Scale, drawing, line, path, shortened, text, titled

__all__ = ["Point", "front", "pareto_chart"]

_LEFT, _TOP, _BOTTOM = 44.0, 32.0, 292.0
_LETTER, _LINE = 6.1, 13.0  # of a note's text
_LONGEST = 26  # letters of a label
_ALLOWED = "smallest allowed"


@dataclass(frozen=True)
class Point:
    """One mixture.

    Args:
        ms: latency.
        value: metric, in the chart's unit.
        label: what distinguishes it from the one before.
        number: its row in the table beside the chart.
        kind: "chosen" is what was ended with, "end" all int8 or all float, "way" a step between, "tried" one that was
            not kept.
        detail: said when pointed at.
    """

    ms: float
    value: float
    label: str
    number: int
    kind: Literal["chosen", "end", "way", "tried"]
    detail: str


def pareto_chart(points: Sequence[Point], *, name: str, y_label: str, limit: float | None = None) -> Markup:
    """Latency to the right, the metric upwards; a line joins the mixtures that no other beats in both.

    Args:
        points: at least one.
        name: what a screen reader says instead of the chart.
        y_label: the metric with its unit.
        limit: the metric's smallest allowed value.
    """
    values = [point.value for point in points] + ([] if limit is None else [limit])
    frame = Frame(_aired([point.ms for point in points], _LEFT, WIDTH - 14.0), _aired(values, _BOTTOM, _TOP))
    parts = [frame.axes("latency, ms", y_label)]
    if limit is not None:
        parts.append(line(frame.x.start, frame.y.at(limit), frame.x.end, frame.y.at(limit), "reference"))
        parts.append(text(frame.x.end, frame.y.at(limit) - 4, _ALLOWED, "note", anchor="end"))
    best = [(frame.x.at(point.ms), frame.y.at(point.value)) for point in front(points)]
    if len(best) > 1:
        parts.append(path(best, "axis"))
    parts += [_mark(point, frame) for point in points]
    parts += _labels(points, frame, limit)
    return drawing(WIDTH, _BOTTOM + 44.0, name, Markup("").join(parts))


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none is faster without scoring less; the fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.ms, -one.value)):
        if not kept or point.value > kept[-1].value:
            kept.append(point)
    return kept


def _aired(values: Sequence[float], start: float, end: float) -> Scale:
    """A linear scale with room for labels around the values."""
    low, high = min(values), max(values)
    air = 0.1 * (high - low) or 0.05 * abs(high) or 0.5
    return Scale(low - air if low - air > 0 or low <= 0 else 0.5 * low, high + air, start, end)


def _mark(point: Point, frame: Frame) -> Markup:
    kind = {"chosen": "dot", "tried": "series s5 dots"}.get(point.kind, "series s0 dots")
    at = [(frame.x.at(point.ms), frame.y.at(point.value))]
    return titled(path(at, kind, dots=True), point.detail)


def _labels(points: Sequence[Point], frame: Frame, limit: float | None) -> list[Markup]:
    """A label beside each point where one fits, else its number, else none: the table has them all."""
    taken = [
        _Box(x - 5.0, y - 5.0, x + 5.0, y + 5.0)
        for point in points
        for x, y in [(frame.x.at(point.ms), frame.y.at(point.value))]
    ]
    if limit is not None:
        y = frame.y.at(limit)
        taken.append(_Box(frame.x.end - _LETTER * len(_ALLOWED), y - 4 - _LINE, frame.x.end, y))
    drawn = []
    # what was ended with, and the ends of the way, are what a reader looks for
    order = {"chosen": 0, "end": 1, "way": 2, "tried": 3}
    for point in sorted(points, key=lambda one: (order[one.kind], one.number)):
        for words in (f"{point.number}: {shortened(point.label, _LONGEST)}", str(point.number)):
            found = _place(words, frame.x.at(point.ms), frame.y.at(point.value), taken)
            if found is not None:
                box, anchor = found
                taken.append(box)
                x = {"start": box.left, "end": box.right}.get(anchor, (box.left + box.right) / 2)
                drawn.append(text(x, box.bottom - 3, words, "note", anchor=anchor))
                break
    return drawn


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        apart = self.right < other.left or other.right < self.left or self.bottom < other.top or other.bottom < self.top
        return not apart


def _place(words: str, x: float, y: float, taken: Sequence[_Box]) -> tuple[_Box, str] | None:
    """Where a text of one line stands free beside a point, and its anchor."""
    width, half = _LETTER * len(words), _LINE / 2
    for box, anchor in (
        (_Box(x + 8, y - half, x + 8 + width, y + half), "start"),
        (_Box(x - 8 - width, y - half, x - 8, y + half), "end"),
        (_Box(x - width / 2, y - 8 - _LINE, x + width / 2, y - 8), "middle"),
        (_Box(x - width / 2, y + 8, x + width / 2, y + 8 + _LINE), "middle"),
    ):
        inside = box.left >= _LEFT and box.right <= WIDTH and box.top >= _TOP - 6 and box.bottom <= _BOTTOM
        if inside and not any(box.meets(one) for one in taken):
            return box, anchor
    return None
