"""The page of a report: one self-contained HTML file, styles and charts inside, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgekd import _plots as plots
from edgekd import _report_format as text
from edgekd._ladder import Paired, Rung
from edgekd._report_device_charts import device_charts
from edgekd._report_file_model import Operator
from edgekd._report_model import Curve, Int8VsFloat, Report
from edgekd._report_quality import agreement_chart
from edgekd._report_sensitivity import pareto
from edgekd._report_shipped import TOP_OPERATORS, operator_groups
from edgekd._report_tables import tables
from edgekd._report_text import budget_sentence
from edgekd._report_training import parts_chart
from edgekd._table import TONES, label

__all__ = ["html"]


@dataclass(frozen=True)
class _Figure:
    """A key figure: what, how much, and against what."""

    title: str
    value: str
    note: str


@dataclass(frozen=True)
class _Chart:
    title: str
    caption: str
    drawing: Markup


@dataclass(frozen=True)
class _OperatorRow:
    name: str
    op: str
    int8: bool
    mean: str
    share: str
    width_percent: float


@dataclass(frozen=True)
class _OperatorGroup:
    title: str
    summary: str
    rows: list[_OperatorRow]
    rest: str


def html(report: Report) -> str:
    """Render the whole page."""
    environment = Environment(
        loader=PackageLoader("edgekd", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["together"] = _together
    style = resources.files("edgekd.templates").joinpath("report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(style),
        tone=TONES[report.verdict.overall] if report.verdict else "",
        budget=budget_sentence(report.verdict) if report.verdict else "",
        figures=_figures(report),
        tables=tables(report),
        accuracy_charts=_accuracy_charts(report),
        table_charts=_table_charts(report),
        latency_charts=_latency_charts(report),
        training_charts=_training_charts(report.curves),
        operator_groups=[_operator_group(*group) for group in operator_groups(report.operators).items()],
        recipe=text.toml(report.recipe).strip(),
    )


def _together(sentence: str) -> str:
    """Keep a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=%|ms\b|points\b|[KMG]iB\b)", "\u00a0", sentence)


def _figures(report: Report) -> list[_Figure]:
    """The few numbers a reader wants first; each only if it was measured."""
    shipped = _shipped(report)
    figures = _accuracy_figures(report, shipped) if shipped else []
    verdict = report.verdict
    if verdict and verdict.measured_ms is not None:
        which = f"p{verdict.percentile:g} latency" if verdict.percentile is not None else "Latency"
        budget = "" if verdict.budget_ms is None else f"budget {text.number(verdict.budget_ms)} ms"
        figures.append(_Figure(which, f"{text.number(verdict.measured_ms)} ms", budget))
    for speed in report.int8_vs_float[:1]:
        bounds = "" if speed.ci95 is None else f"95 %: {text.ratio_interval(speed.ci95)}"
        figures.append(_Figure("Int8 speed-up", text.ratio(speed.speedup), bounds))
    if shipped and shipped.size_bytes:
        figures.append(_Figure("File size", text.size(shipped.size_bytes), _smaller(report.ladder, shipped)))
    for fusion in report.fusion[:1]:
        note = f"{fusion.int8} of {fusion.quantizable} operators"
        figures.append(_Figure("Int8 coverage", text.percent(fusion.coverage, decimals=1), note))
    return figures


def _shipped(report: Report) -> Rung | None:
    """The rung that the verdict is about; without one, the last of the ladder."""
    verdict = report.verdict
    for rung in report.ladder:
        if verdict and verdict.rung == rung.rung and verdict.target == rung.target:
            return rung
    return report.ladder[-1] if report.ladder else None


def _accuracy_figures(report: Report, shipped: Rung) -> list[_Figure]:
    figures = [
        _Figure(
            f"Accuracy of {shipped.rung}",
            text.percent(shipped.value),
            f"95 %: {text.percent_interval(shipped.ci95, decimals=1)}",
        )
    ]
    pairs = [pair for pair in report.paired if pair.b in (shipped.rung, label(shipped.rung, shipped.target))]
    # the float student is the comparison that a reader asks for first
    for pair in sorted(pairs, key=lambda pair: pair.a not in ("student", "onnx_float"))[:1]:
        note = f"points; 95 %: {text.points_interval(pair.ci95)}"
        figures.append(_Figure(f"Against {pair.a}", text.points(pair.difference, unit=False), note))
    return figures


def _smaller(ladder: Sequence[Rung], shipped: Rung) -> str:
    first = next((rung for rung in ladder if rung.size_bytes), None)
    if first is None or first is shipped or not shipped.size_bytes or not first.size_bytes:
        return ""
    return f"{text.number(first.size_bytes / shipped.size_bytes)} × smaller than {first.rung}"  # noqa: RUF001


def _accuracy_charts(report: Report) -> list[_Chart]:
    charts = []
    if report.ladder:
        rows = [
            plots.Interval(
                rung.rung,
                rung.target or "",
                100 * rung.value,
                100 * rung.ci95[0],
                100 * rung.ci95[1],
                text.percent(rung.value),
            )
            for rung in report.ladder
        ]
        name = "Accuracy of every rung: " + "; ".join(f"{row.name} {row.detail} {row.shown}" for row in rows)
        chart = plots.interval_chart(rows, name=name, x_label="accuracy, %")
        charts.append(_Chart("Accuracy of every rung", "Dot: accuracy. Line: 95 % interval.", chart))
    sized = [
        plots.Bar(rung.rung, rung.target or "", rung.size_bytes / 2**20, text.size(rung.size_bytes))
        for rung in report.ladder
        if rung.size_bytes
    ]
    if sized:
        name = "Size on disk: " + "; ".join(f"{row.name} {row.detail} {row.shown}" for row in sized)
        chart = plots.bar_chart(sized, name=name, x_label="size on disk, MiB")
        charts.append(_Chart("Size on disk", "Of the file of each rung.", chart))
    return charts


def _table_charts(report: Report) -> dict[str, Markup]:
    """Charts that stand above the table of the same key."""
    charts = {}
    if report.paired:
        charts["paired"] = _paired_chart(report.paired)
    if report.distillation:
        charts["fidelity"] = agreement_chart(report.distillation)
    if report.int8_vs_float:
        charts["int8_vs_float"] = _speedup_chart(report.int8_vs_float)
    charts |= device_charts(report)
    if report.mixed:
        charts["mixed"] = Markup("").join(pareto(one) for one in report.mixed.values())
    if drawn := parts_chart(report.training):
        charts["step_parts"] = drawn
    return charts


def _paired_chart(pairs: Sequence[Paired]) -> Markup:
    rows = [
        plots.Interval(
            pair.b,
            f"against {pair.a}",
            100 * pair.difference,
            100 * pair.ci95[0],
            100 * pair.ci95[1],
            text.points(pair.difference, unit=False),
        )
        for pair in pairs
    ]
    name = "Paired differences in points: " + "; ".join(f"{row.name} {row.detail} {row.shown}" for row in rows)
    return plots.interval_chart(rows, name=name, x_label="difference, percentage points", reference=0.0)


def _speedup_chart(speeds: Sequence[Int8VsFloat]) -> Markup:
    rows = [
        plots.Interval(
            row.target, row.device, row.speedup, *(row.ci95 or (row.speedup, row.speedup)), text.ratio(row.speedup)
        )
        for row in speeds
    ]
    name = "Speed-up of int8 over float: " + "; ".join(f"{row.name} {row.shown}" for row in rows)
    return plots.interval_chart(rows, name=name, x_label="float time / int8 time", reference=1.0)


def _latency_charts(report: Report) -> list[_Chart]:
    samples = _drawn_samples(report)
    charts = []
    if samples:
        budget, percentile = _budget(report)
        ecdf = plots.ecdf_chart(samples, budget_ms=budget, percentile=percentile)
        charts.append(_Chart("Distribution", "Share of queries that took at most this long.", ecdf))
        timeline = plots.timeline_chart(samples, budget_ms=budget)
        charts.append(_Chart("Over time", "Every query; none is removed.", timeline))
    return charts


def _drawn_samples(report: Report) -> dict[str, list[float]]:
    """The series of the steady state: those of other numbers of threads and of emulated devices would mislead."""
    named = {row.samples for row in report.latency if row.is_latency and not row.sweep}
    known = {row.samples for row in report.latency} | {row.samples for row in report.end_to_end}
    return {
        name: values
        for name, values in report.latency_samples.items()
        # a report of before the rows named their series has none that should be left out
        if values and (name in named or name not in known)
    }


def _budget(report: Report) -> tuple[float | None, float | None]:
    if report.verdict and report.verdict.budget_ms is not None:
        return report.verdict.budget_ms, report.verdict.percentile
    row = next((row for row in report.latency if row.budget_ms is not None), None)
    return (row.budget_ms, row.percentile) if row else (None, None)


def _training_charts(curves: Sequence[Curve]) -> list[_Chart]:
    by_stage: dict[str, list[list[Curve]]] = {}
    for (stage, _), run in groupby(curves, key=lambda curve: (curve.stage, curve.seed)):
        by_stage.setdefault(stage, []).append(list(run))
    measured = {
        stage: lines
        for stage, runs in by_stage.items()
        if (lines := [line for run in runs if (line := _points(run, "val_accuracy"))])
    }
    charts = []
    if measured:
        name = f"Validation accuracy by epoch of {', '.join(measured)}."
        chart = plots.curve_chart(measured, name=name, y_label="validation accuracy, %")
        charts.append(_Chart("Validation accuracy", "Of each training stage; repeats share a style.", chart))
    for stage, runs in by_stage.items():
        terms = list(dict.fromkeys(term for run in runs for curve in run for term in curve.terms))
        series = {term: lines for term in terms if (lines := [line for run in runs if (line := _points(run, term))])}
        if series:
            chart = plots.curve_chart(series, name=f"Loss terms of {stage} by epoch.", y_label="loss")
            charts.append(_Chart(f"Loss of {stage}", "Weighted terms of the objective.", chart))
    return charts


def _points(run: Sequence[Curve], what: str) -> list[tuple[float, float]]:
    if what == "val_accuracy":
        return [(curve.epoch, 100 * curve.val_accuracy) for curve in run if curve.val_accuracy is not None]
    return [(curve.epoch, curve.terms[what]) for curve in run if what in curve.terms]


def _operator_group(name: str, ordered: Sequence[Operator]) -> _OperatorGroup:
    longest = ordered[0].mean_us or 1.0
    total = sum(operator.mean_us for operator in ordered)
    int8 = sum(operator.mean_us for operator in ordered if operator.int8)
    rows = [
        _OperatorRow(
            operator.name,
            operator.op,
            operator.int8,
            text.number(operator.mean_us),
            text.percent(operator.share, decimals=1),
            round(100 * operator.mean_us / longest, 1),
        )
        for operator in ordered[:TOP_OPERATORS]
    ]
    left = ordered[TOP_OPERATORS:]
    rest = f"{len(left)} more: {text.number(sum(operator.mean_us for operator in left))} µs" if left else ""
    share = f", {text.percent(int8 / total, decimals=1)} of it in int8 kernels" if total else ""
    return _OperatorGroup(name, f"{text.number(total)} µs in {len(ordered)} operators{share}", rows, rest)
