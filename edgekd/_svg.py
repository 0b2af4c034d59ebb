"""Draw small charts as inline SVG that follows the page's colours: scales, ticks and marks.

Hand-made rather than a plotting library's: text stays text, colours are the style sheet's (so that one drawing
serves light and dark), and a chart is a few kilobytes. Lengths are in SVG user units, one CSS pixel at full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup, escape

__all__ = ["Frame", "Scale", "drawing", "legend", "line", "path", "shortened", "text", "tick_label", "titled"]


@dataclass(frozen=True)
class Scale:
    """A map from values to positions; values are kept within [low, high] by the caller.

    Args:
        low, high: values at the ends, low < high; both > 0 if `log`.
        start, end: positions of the ends.
        log: logarithmic instead of linear.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of a value."""
        if self.log:
            share = (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values within the scale, about `wanted` of them."""
        return _log_ticks(self.low, self.high, wanted) if self.log else _linear_ticks(self.low, self.high, wanted)


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    raw = (high - low) / max(1, wanted)
    decade = 10.0 ** floor(log10(raw))
    step = next(factor * decade for factor in (1, 2, 2.5, 5, 10) if factor * decade >= raw * 0.999)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in decades for factor in factors]
        ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) <= wanted + 2:
            break
    # a range within one step of 1-2-5 has no such tick, or one: linear ticks then say more
    return ticks if len(ticks) > 1 else _linear_ticks(low, high, wanted)


def tick_label(value: float) -> str:
    """A tick's number, without trailing zeros."""
    return f"{value:,.6f}".rstrip("0").rstrip(".").replace("-", "−") or "0"  # noqa: RUF001 typographic minus


@dataclass(frozen=True)
class Frame:
    """The plotting area of a chart and its two axes; `whole_x` keeps x ticks to whole numbers."""

    x: Scale
    y: Scale
    whole_x: bool = False

    def axes(self, x_label: str, y_label: str, *, y_ticks: Sequence[tuple[float, str]] | None = None) -> Markup:
        """Grid lines, tick labels and axis labels; the y label stands above the axis, so that it reads level."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        ticks = y_ticks if y_ticks is not None else [(tick, tick_label(tick)) for tick in self.y.ticks(5)]
        parts = []
        for value, name in ticks:
            at = self.y.at(value)
            parts += [line(left, at, right, at, "grid"), text(left - 6, at + 4, name, "tick", anchor="end")]
        for tick in self.x.ticks(5):
            if self.whole_x and tick != round(tick):
                continue
            at = self.x.at(tick)
            parts += [line(at, bottom, at, bottom + 4, "axis"), text(at, bottom + 17, tick_label(tick), "tick")]
        parts.append(line(left, bottom, right, bottom, "axis"))
        parts.append(text((left + right) / 2, bottom + 36, x_label, "label"))
        parts.append(text(0, top - 15, y_label, "label", anchor="start"))
        return Markup("").join(parts)


def drawing(width: float, height: float, name: str, body: Markup) -> Markup:
    """A whole drawing; `name` is what a screen reader says instead of it."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" class="chart">{}</svg>').format(
        round(width), round(height), name, body
    )


def text(x: float, y: float, content: str, kind: str, *, anchor: str = "middle") -> Markup:
    """A line of text; `kind` is its class in the style sheet."""
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(
        x, y, kind, anchor, content
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


def path(points: Sequence[tuple[float, float]], kind: str, *, dots: bool = False) -> Markup:
    """A polyline, or as `dots` one round mark a point (drawn as zero-length strokes with round ends)."""
    if dots:
        steps = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    else:
        steps = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Markup('<path d="{}" class="{}"/>').format(Markup(steps), kind)


def legend(names: Sequence[str], width: float, *, dots: bool = False) -> tuple[Markup, float]:
    """Series names with a sample of each mark, wrapped to `width`; also the height they take."""
    parts, x, row = [], 0.0, 0
    for index, name in enumerate(names):
        needed = 30 + 6.7 * len(name) + 16
        if x and x + needed > width:
            x, row = 0.0, row + 1
        y = 10 + 18 * row
        marks = [(x + 4.0, float(y)), (x + 13.0, float(y)), (x + 22.0, float(y))]
        parts.append(path(marks, f"series s{index % 6}{' dots' if dots else ''}", dots=dots))
        parts.append(text(x + 30, y + 4, name, "tick", anchor="start"))
        x += needed
    return Markup("").join(parts), 18.0 * (row + 1) + 4


def shortened(name: str, limit: int) -> str:
    """A name cut to `limit` characters, its end kept visible as cut."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def titled(body: Markup, hover: str) -> Markup:
    """Marks with a text shown when pointed at."""
    return Markup("<g><title>{}</title>{}</g>").format(escape(hover), body)
