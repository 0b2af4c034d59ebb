"""The report's tables of what was measured: accuracy, differences, latency."""

from __future__ import annotations

from edgekd import _report_format as text
from edgekd._report_model import Latency, Report
from edgekd._table import TONES, Cell, Table, Tone, cells, columns_of

__all__ = ["calibration", "conditions", "int8_vs_float", "ladder", "latency", "mobile", "paired", "repeats"]


def ladder(report: Report) -> Table:
    """Accuracy, agreement, size of every rung."""
    columns = columns_of(
        "Rung",
        "Target",
        ">Accuracy",
        ">95 % interval",
        "~>Samples",
        ">Agreement with teacher",
        "~>KL to teacher, nats",
        ">Size",
        "~>Parameters",
    )
    rows = [
        cells(
            rung.rung,
            rung.target or text.MISSING,
            text.percent(rung.value),
            text.percent_interval(rung.ci95),
            text.count(rung.n),
            text.percent(rung.agreement),
            text.number(rung.kl),
            text.size(rung.size_bytes),
            text.count(rung.parameters),
        )
        for rung in report.ladder
    ]
    note = "Every rung is evaluated on the same samples. Intervals are Wilson's and describe sampling error only."
    return Table("ladder", "Accuracy ladder", columns, tuple(rows), note)


def calibration(report: Report) -> Table:
    """How good the probabilities of every rung are."""
    columns = columns_of("Rung", "Target", ">NLL, nats", ">ECE, 15 bins", ">Brier score", ">Agreement, 95 % interval")
    rows = [
        cells(
            rung.rung,
            rung.target or text.MISSING,
            text.number(rung.nll),
            text.percent(rung.ece),
            text.number(rung.brier),
            text.percent_interval(rung.agreement_ci95),
        )
        for rung in report.ladder
        if rung.nll is not None or rung.ece is not None or rung.brier is not None
    ]
    return Table("calibration", "Calibration and fidelity", columns, tuple(rows), "Lower is better but for agreement.")


def repeats(report: Report) -> Table:
    """Mean and spread over seeds, of the rungs that were repeated."""
    columns = columns_of("Rung", ">Seeds", ">Mean accuracy", ">Standard deviation, points", "=Each seed")
    rows = [
        cells(
            rung.rung,
            text.count(len(rung.seeds)),
            text.percent(rung.mean),
            text.MISSING if rung.sd is None else f"{100 * rung.sd:.2f}",
            ", ".join(text.percent(value) for value in rung.seeds),
        )
        for rung in report.ladder
        if rung.seeds
    ]
    return Table("repeats", "Repeats with other seeds", columns, tuple(rows), "The spread that training itself has.")


def paired(report: Report) -> Table:
    """Rungs compared on the same samples."""
    columns = columns_of(
        "Rung", "Against", ">Difference, points", ">95 % interval, points", ">p", ">Won", ">Lost", "~>Samples"
    )
    rows = [
        cells(
            pair.b,
            pair.a,
            Cell(text.points(pair.difference, unit=False), _difference_tone(pair.ci95)),
            text.points_interval(pair.ci95),
            text.p_value(pair.p_value),
            text.count(pair.b_only),
            text.count(pair.a_only),
            text.count(pair.n),
        )
        for pair in report.paired
    ]
    note = (
        "Won: samples that only the rung gets right. Lost: samples that only the other gets right."
        " Newcombe's paired interval and the exact McNemar test."
    )
    return Table("paired", "Paired differences", columns, tuple(rows), note)


def _difference_tone(ci95: tuple[float, float]) -> Tone:
    if ci95[0] > 0:
        return "good"
    return "bad" if ci95[1] < 0 else ""


def latency(report: Report) -> Table:
    """Steady-state latency against the budget."""
    columns = columns_of(
        "Rung",
        "Target",
        # a column that says "cpu" in every row is no news on a terminal
        "Device" if {row.device for row in report.latency} - {"cpu"} else "~Device",
        "~>Threads",
        ">Queries",
        "~>Mean, ms",
        ">p50, ms",
        ">p90, ms",
        "~>p95, ms",
        ">p99, ms",
        "~>Max, ms",
        "~>Upper bound, ms",
        ">Budget, ms",
        "Verdict",
    )
    rows = [
        cells(
            row.rung,
            row.target or text.MISSING,
            row.device,
            text.count(row.threads),
            text.count(row.n),
            *(
                text.number(value)
                for value in (row.mean_ms, row.p50_ms, row.p90_ms, row.p95_ms, row.p99_ms, row.max_ms)
            ),
            text.number(row.upper_ms),
            text.number(row.budget_ms),
            _ended(row),
        )
        for row in report.latency
        if not row.sweep
    ]
    note = (
        "Steady state, no sample removed. A dash is a percentile that this many queries cannot support."
        " The upper bound is that of the budget's percentile, at the confidence of the verdict."
    )
    return Table("latency", "Latency", columns, tuple(rows), note)


def _ended(row: Latency) -> Cell:
    if not row.is_latency:
        return Cell("not a latency", "unsure")
    return Cell(row.verdict, TONES[row.verdict]) if row.verdict else Cell(text.MISSING)


def conditions(report: Report) -> Table:
    """Where and how the latency was measured, and the cold start."""
    columns = columns_of(
        "Rung",
        "Target",
        "Device",
        "Runtime",
        "Provider",
        ">Threads",
        ">Batch",
        ">Cold start, ms",
        ">First query, ms",
        ">Drift",
    )
    rows = [
        cells(
            row.rung,
            row.target or text.MISSING,
            row.device,
            row.runtime,
            _provider(row.provider_requested, row.provider_used),
            text.count(row.threads),
            text.count(row.batch),
            text.number(row.cold_ms),
            text.number(row.first_ms),
            text.percent(row.drift, decimals=1, signed=True),
        )
        for row in report.latency
        if not row.sweep
    ]
    note = (
        "Load and first query are the cold start, apart from the steady state above."
        " Drift: the last tenth of the queries against the first."
    )
    return Table("conditions", "Conditions of the measurement", columns, tuple(rows), note)


def _provider(requested: str, used: str) -> Cell:
    return Cell(used) if requested == used else Cell(f"{used}, not {requested}", "bad")


def int8_vs_float(report: Report) -> Table:
    """Speed-up of int8 over float of the same model."""
    columns = columns_of("Target", "Device", ">Speed-up", ">95 % interval", "=Float operators, by time")
    rows = [
        cells(
            row.target,
            row.device,
            Cell(text.ratio(row.speedup), _difference_tone((row.ci95[0] - 1, row.ci95[1] - 1)) if row.ci95 else ""),
            text.ratio_interval(row.ci95),
            ", ".join(row.slow_ops) or "none",
        )
        for row in report.int8_vs_float
    ]
    note = "Float time over int8 time of the same model, measured in turns; above 1 int8 is faster."
    return Table("int8_vs_float", "Int8 against float", columns, tuple(rows), note)


def mobile(report: Report) -> Table:
    """Cold start, memory and file size on one pinned thread."""
    columns = columns_of(
        "Rung", "Target", "~Device", ">Cold start, ms", ">First query, ms", ">Peak memory, MiB", ">File size"
    )
    rows = [
        cells(
            row.rung,
            row.target or text.MISSING,
            row.device,
            text.number(row.cold_ms),
            text.number(row.first_ms),
            text.number(row.peak_memory_mib),
            text.size(row.size_bytes),
        )
        for row in report.mobile
    ]
    return Table("mobile", "Cold start and memory", columns, tuple(rows), "One thread pinned to one core.")
