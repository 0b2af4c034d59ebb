"""Numbers and nested values as people read them in a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import Any

__all__ = [
    "MISSING",
    "count",
    "duration",
    "flattened",
    "mebibytes",
    "number",
    "p_value",
    "percent",
    "percent_interval",
    "points",
    "points_interval",
    "ratio",
    "ratio_interval",
    "size",
    "toml",
    "toml_value",
]

MISSING = "–"  # noqa: RUF001 an en dash is what a table shows for "not measured"
_TIMES = "×"  # noqa: RUF001
_MINUS = "−"  # noqa: RUF001 the typographic minus is as wide as a plus, so that signed columns align


def number(value: float | None, *, digits: int = 3) -> str:
    """At least `digits` significant digits, thousands grouped, an exponent below 0.0001; None is a dash.

    >>> number(0.012345), number(12.345), number(12345.6), number(0.0000086)
    ('0.0123', '12.3', '12,346', '8.60e-6')
    """
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    rounded = round(value, _decimals(value, digits))
    decimals = _decimals(rounded or value, digits)  # 0.9996 rounds up into the next decade
    return f"{rounded:,.{decimals}f}".replace("-", _MINUS)


def _decimals(value: float, digits: int) -> int:
    return max(0, min(digits - 1 - floor(log10(abs(value))), 9))


def count(value: int | None) -> str:
    """A whole number with thousands grouped."""
    return MISSING if value is None else f"{value:,}"


def percent(value: float | None, *, decimals: int = 2, signed: bool = False) -> str:
    """A fraction as a percentage."""
    if value is None:
        return MISSING
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.{decimals}f} %".replace("-", _MINUS)


def percent_interval(ci95: tuple[float, float] | None, *, decimals: int = 2) -> str:
    """An interval of fractions as percentages."""
    return MISSING if ci95 is None else f"{100 * ci95[0]:.{decimals}f} to {100 * ci95[1]:.{decimals}f} %"


def points(value: float | None, *, unit: bool = True) -> str:
    """A difference of fractions in signed percentage points."""
    if value is None:
        return MISSING
    text = f"{100 * value + 0.0:+.2f}".replace("-", _MINUS)  # no minus before a zero
    return f"{text} points" if unit else text


def points_interval(ci95: tuple[float, float]) -> str:
    """An interval of a difference in signed percentage points."""
    return f"{points(ci95[0], unit=False)} to {points(ci95[1], unit=False)}"


def ratio(value: float) -> str:
    """How many times."""
    return f"{value:.2f} {_TIMES}"


def ratio_interval(ci95: tuple[float, float] | None) -> str:
    """An interval of a ratio."""
    return MISSING if ci95 is None else f"{ci95[0]:.2f} to {ratio(ci95[1])}"


def p_value(value: float) -> str:
    """A probability; small ones are only said to be small."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def size(size_bytes: int | None) -> str:
    """A file size in binary units.

    >>> size(900), size(326_000), size(11_400_000)
    ('900 B', '318 KiB', '10.9 MiB')
    """
    if size_bytes is None:
        return MISSING
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000 or unit == "GiB":
            break
        value /= 1024
    return f"{number(value)} {unit}"


def mebibytes(value: float | None) -> str:
    """Memory in MiB, or GiB from 1000 MiB on.

    >>> mebibytes(412.34), mebibytes(2048.0)
    ('412 MiB', '2.00 GiB')
    """
    return MISSING if value is None else size(round(value * 2**20))


def duration(seconds: float) -> str:
    """A time span.

    >>> duration(0.42), duration(75), duration(7384)
    ('0.42 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as ("a.b", text) rows; lists of plain values stay on one row."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flattened(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            rows.append((f"{prefix}{key}", ", ".join(_plain(one) for one in value) or MISSING))
        else:
            rows.append((f"{prefix}{key}", _plain(value)))
    return rows


def toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """Plain nested values as TOML, plain keys before tables; None is left out, as TOML has no null."""
    plain, tables = [], []
    for key, value in values.items():
        if isinstance(value, Mapping):
            tables.append(f"\n[{prefix}{_key(key)}]\n{toml(value, f'{prefix}{_key(key)}.')}")
        elif isinstance(value, Sequence) and value and all(isinstance(one, Mapping) for one in value):
            tables += [f"\n[[{prefix}{_key(key)}]]\n{toml(one, f'{prefix}{_key(key)}.')}" for one in value]
        elif value is not None:
            plain.append(f"{_key(key)} = {toml_value(value)}\n")
    return "".join(plain + tables)


def toml_value(value: Any) -> str:
    """One plain value as TOML, tables inline."""
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's, but for DEL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(one) for one in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {toml_value(one)}" for key, one in value.items()) + "}"
    return repr(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _plain(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
