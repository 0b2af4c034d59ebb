"""The report's part on sensitivity and mixed precision: which layer is to blame, and what restoring it bought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from markupsafe import Markup

from edgekd import _report_format as text
from edgekd._plots_pareto import Point, pareto_chart
from edgekd._sensitivity_model import (
    EQUAL_DB,
    OUTPUT_DB,
    WEIGHT_DB,
    GroupSensitivity,
    MixedPrecision,
    Sensitivity,
    Step,
)
from edgekd._table import Cell, Table, cells, columns_of

__all__ = ["TOP_GROUPS", "mixed_sentences", "pareto", "path", "sensitivity"]

TOP_GROUPS = 20  # the worst of each target; report.json holds all


def sensitivity(found: Mapping[str, Sensitivity]) -> Table:
    """What int8 does to each layer, the worst first.

    Args:
        found: by target.
    """
    columns = columns_of(
        "Target",
        "Layer",
        "~Type",
        ">Weights, dB",
        ">Output, dB",
        ">Logits, dB",
        "~>KL alone, nats",
        ">KL won back, nats",
        ">KL of its output, nats",
        "~>Accuracy alone, points",
        ">Accuracy won back, points",
    )
    rows = [_sensitivity_row(target, one) for target, all_of in found.items() for one in all_of.worst()[:TOP_GROUPS]]
    counts = ", ".join(
        f"{target}: {min(len(one.groups), TOP_GROUPS)} of {len(one.groups)} layers, {text.count(one.n)} samples,"
        f" KL of the int8 network {text.number(one.kl_int8)}"
        for target, one in found.items()
    )
    note = (
        "SQNR of the weights; of the layer's output and of the logits when it alone is int8"
        f" (flagged below {WEIGHT_DB:g} dB for weights, {OUTPUT_DB:g} dB for outputs)."
        " Won back: when it alone is float again. KL of its output: what goes away when that tensor alone keeps its"
        f" floats; it needs the layer and its readers in float. {counts}."
    )
    return Table("sensitivity", "Sensitivity of each layer", columns, tuple(rows), note)


def _sensitivity_row(target: str, one: GroupSensitivity) -> tuple[Cell, ...]:
    return cells(
        target,
        one.name,
        one.operator,
        Cell(_db(one.weight_sqnr_db), "bad" if "weights" in one.flags else ""),
        Cell(_db(one.output_sqnr_db), "bad" if "output" in one.flags else ""),
        _db(one.end_to_end_sqnr_db),
        text.number(one.kl_alone),
        text.number(one.kl_gain),
        text.number(one.kl_gain_output),
        text.MISSING if one.drop_alone is None else text.points(-one.drop_alone, unit=False),
        text.MISSING if one.gain is None else text.points(one.gain, unit=False),
    )


def path(found: Mapping[str, MixedPrecision]) -> Table:
    """Every step of the search for a mixture that holds.

    Args:
        found: by target.
    """
    columns = columns_of(
        "Target", ">Step", "=What", ">Layers in float", ">Metric", ">Drop", ">Latency, ms", "~>Estimate, ms", "Holds"
    )
    rows = [
        cells(
            target,
            text.count(number),
            _what(step),
            text.count(len(step.float_layers)),
            _value(step.metric, one.metric),
            _difference(step.drop, one.metric),
            text.number(step.measured_ms),
            text.number(step.estimated_ms),
            Cell("yes" if step.holds else "no", "good" if step.holds else "bad"),
        )
        for target, one in found.items()
        for number, step in enumerate(one.path)
    ]
    note = (
        "Cheapest accuracy per millisecond first, then whatever turned out unneeded is given back. The metric is of the"
        " validation split, simulated on the int8 grid; the estimate adds up the cost of each layer and the"
        " conversions between int8 and float."
    )
    return Table("mixed", "Mixed precision, step by step", columns, tuple(rows), note)


def mixed_sentences(found: Mapping[str, MixedPrecision]) -> list[str]:
    """One sentence per target: what is float, and what that does; for the notes of a report."""
    sentences = []
    for target, one in found.items():
        drop = f"{_difference(one.drop, one.metric)}, allowed {_difference(one.max_drop, one.metric)}"
        if one.all_float:
            sentences.append(f"{target}: only with every layer in float does the drop of {one.metric} hold ({drop}).")
        elif not one.float_layers:
            sentences.append(f"{target}: int8 holds without any layer in float; drop of {one.metric} {drop}.")
        else:
            names = ", ".join(one.float_layers)
            sentences.append(f"{target}: in float {names}; drop of {one.metric} {drop}.")
    return sentences


def pareto(found: MixedPrecision) -> Markup:
    """Every mixture by latency and metric, labelled with what was restored."""
    share = 100.0 if found.metric == "accuracy" else 1.0
    final = found.final
    # without a measurement of every step, estimates alone can be compared
    steps = [step for step in found.path if step.measured_ms is not None]
    measured = len(steps) > 1 and final in steps
    shown = steps if measured else found.path
    points = [
        Point(
            ms=step.ms if measured else step.estimated_ms,
            value=share * step.metric,
            label=_what(step),
            number=number,
            kind=_kind(step, final),
            detail=f"{_what(step)}: {_value(step.metric, found.metric)}, {text.number(step.ms)} ms",
        )
        for number, step in enumerate(found.path)
        if any(step is one for one in shown)
    ]
    unit = f"{found.metric}, %" if found.metric == "accuracy" else found.metric
    name = f"Mixtures of int8 and float by latency and {found.metric}: " + "; ".join(one.detail for one in points)
    limit = share * (found.path[-1].metric - found.max_drop)
    return pareto_chart(points, name=name, y_label=unit, limit=limit)


def _kind(step: Step, final: Step) -> Literal["chosen", "end", "way", "tried"]:
    if step is final:
        return "chosen"
    if step.action in ("int8", "float"):
        return "end"
    return "way" if step.accepted else "tried"


def _what(step: Step) -> str:
    """A step in a few words."""
    names = ", ".join(step.groups)
    if step.action == "restore":
        return f"+ {names}"
    if step.action == "give_back":
        return f"{names} back to int8" if step.accepted else f"{names} back to int8, refused"
    return "all int8" if step.action == "int8" else "all float"


def _db(value: float | None) -> str:
    if value is None:
        return text.MISSING
    return "equal" if value >= EQUAL_DB else f"{value:.1f}".replace("-", "−")  # noqa: RUF001 typographic minus


def _value(value: float, metric: str) -> str:
    return text.percent(value) if metric == "accuracy" else text.number(value)


def _difference(value: float, metric: str) -> str:
    return f"{100 * value:.2f} points".replace("-", "−") if metric == "accuracy" else text.number(value)  # noqa: RUF001
