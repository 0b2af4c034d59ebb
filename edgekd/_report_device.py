"""The report's tables about devices: what they are, cold start, end to end, long runs, placement, energy, baseline."""

from __future__ import annotations

from edgekd import _report_format as text
from edgekd._report_model import Report
from edgekd._table import TONES, Cell, Table, Tone, cells, columns_of, without_empty

__all__ = [
    "baseline",
    "cold",
    "costly",
    "devices",
    "end_to_end",
    "energy",
    "golden",
    "placement",
    "sustained",
    "threads",
    "worth",
]


def devices(report: Report) -> Table:
    """The devices that something was measured on."""
    columns = columns_of(
        "Device",
        "Machine",
        "=Processor or board",
        "~System",
        "Runtime",
        ">Cores",
        "~>Memory",
        "~Governor",
        "~=Power mode",
    )
    rows = [
        cells(
            row.device,
            f"{row.machine}, emulated" if row.emulated else row.machine,
            str(row.details.get("board") or row.details.get("model") or text.MISSING),
            row.system,
            f"{row.runtime} {row.runtime_version}",
            text.count(row.cores),
            text.size(row.memory_bytes),
            str(row.details.get("governor") or text.MISSING),
            str(row.details.get("power_mode") or text.MISSING),
        )
        for row in report.devices
    ]
    table = Table("devices", "What was measured on", columns, tuple(rows), "As each says about itself.")
    return without_empty(table, "Governor", "Power mode")


def cold(report: Report) -> Table:
    """The cold start by its parts."""
    columns = columns_of(
        "Rung",
        "Device",
        ">Process, ms",
        ">Load, ms",
        ">First query, ms",
        ">All, ms",
        ">Peak memory",
        ">Of the model",
        "~>Processes",
    )
    rows = [
        cells(
            row.rung,
            row.device,
            text.number(row.process_ms),
            text.number(row.load_ms),
            text.number(row.first_ms),
            Cell(text.number(row.total_ms), "" if row.is_latency else "unsure"),
            text.mebibytes(row.peak_memory_mib),
            text.mebibytes(row.model_memory_mib),
            text.count(row.repeats),
        )
        for row in report.cold
    ]
    note = "Medians of new processes: interpreter and runtime, then the model, then the first query."
    return Table("cold", "Cold start by part", columns, tuple(rows), note + _not_latency(report))


def end_to_end(report: Report) -> Table:
    """From an image in memory to labels."""
    columns = columns_of(
        "Rung",
        "Device",
        ">Queries",
        ">Preprocess, ms",
        ">Inference, ms",
        ">Postprocess, ms",
        ">Whole p50, ms",
        ">Whole p90, ms",
        "~>Upper bound, ms",
        ">Budget, ms",
        "Verdict",
    )
    rows = [
        cells(
            row.rung,
            row.device,
            text.count(row.n),
            text.number(row.preprocess_p50_ms),
            text.number(row.inference_p50_ms),
            text.number(row.postprocess_p50_ms),
            text.number(row.p50_ms),
            text.number(row.p90_ms),
            text.number(row.upper_ms),
            text.number(row.budget_ms),
            Cell(row.verdict, TONES[row.verdict])
            if row.verdict
            else Cell(text.MISSING if row.is_latency else "not a latency", "" if row.is_latency else "unsure"),
        )
        for row in report.end_to_end
    ]
    note = (
        "An image of the model's size in memory to sorted labels; parts are medians. Timed apart from the steady state,"
        " whose inferences follow each other without anything between."
    )
    return without_empty(Table("end_to_end", "End to end", columns, tuple(rows), note), "Budget, ms", "Verdict")


def threads(report: Report) -> Table:
    """Latency by number of threads, where more than one was measured."""
    rows = [row for row in report.latency if row.is_latency]
    counts = {(row.rung, row.target, row.device): 0 for row in rows}
    for row in rows:
        counts[(row.rung, row.target, row.device)] += 1
    swept = [row for row in rows if counts[(row.rung, row.target, row.device)] > 1]
    columns = columns_of("Rung", "Target", "Device", ">Threads", "Cores", ">Queries", ">p50, ms", ">p90, ms")
    shown = [
        cells(
            row.rung,
            row.target or text.MISSING,
            row.device,
            text.count(row.threads),
            ", ".join(map(str, row.cores)) or text.MISSING,
            text.count(row.n),
            text.number(row.p50_ms),
            text.number(row.p90_ms),
        )
        for row in sorted(swept, key=lambda row: (row.rung, row.target or "", row.device, row.threads))
    ]
    return Table("threads", "Numbers of threads", columns, tuple(shown), "The budget is about the first one measured.")


def sustained(report: Report) -> Table:
    """Long runs of one model."""
    columns = columns_of(
        "Rung",
        "Device",
        ">Time",
        ">Queries",
        ">p50, ms",
        ">p90, ms",
        ">Drift",
        ">Drift, 95 %",
        ">Lowest clock",
        ">Highest temperature",
        "=Held back by",
    )
    rows = [
        cells(
            row.rung,
            row.device,
            text.duration(row.seconds),
            text.count(row.n),
            text.number(row.p50_ms),
            text.number(row.p90_ms),
            Cell(text.percent(row.drift, decimals=1, signed=True), _drift_tone(row.drift_ci95)),
            _signed(row.drift_ci95),
            text.percent(row.min_clock_ratio, decimals=0),
            text.MISSING if row.max_temperature_c is None else f"{row.max_temperature_c:.1f} °C",
            Cell(
                ", ".join(row.throttled) or ("see the verdict" if row.invalid else "nothing told"),
                _invalid(row.invalid),
            ),
        )
        for row in report.sustained
    ]
    note = (
        "One model without a pause. Drift: median of the last tenth of the queries over that of the first, with a block"
        " bootstrap. Lowest clock: over the first one read. Upright lines: the device said that it was held back."
    )
    return Table("sustained", "Sustained", columns, tuple(rows), note)


def _signed(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return text.MISSING
    low, high = (text.percent(bound, decimals=1, signed=True) for bound in interval)
    return f"{low} to {high}"


def _drift_tone(ci95: tuple[float, float] | None) -> Tone:
    return "bad" if ci95 is not None and ci95[0] > 0 else ""


def _invalid(reason: str | None) -> Tone:
    return "unsure" if reason else ""


def placement(report: Report) -> Table:
    """Which provider ran the nodes."""
    columns = columns_of(
        "Rung", "Device", "Provider asked for", "=Nodes that ran", ">Partitions", ">Fallback", ">Float islands", "=Gate"
    )
    rows = [
        cells(
            row.rung,
            row.device,
            row.provider_requested,
            ", ".join(
                f"{count} on {name} ({text.percent(row.shares[name], decimals=1)})" for name, count in row.nodes.items()
            ),
            text.count(row.partitions),
            text.count(len(row.fallback)),
            text.count(len(row.float_islands)),
            Cell(f"{'PASS' if row.passed else 'FAIL'}: {row.reason}", "good" if row.passed else "bad"),
        )
        for row in report.placement
    ]
    note = "Of the graph that really ran, by the runtime's own profile. Float islands: int8 in the file, float there."
    return Table("placement", "Placement", columns, tuple(rows), note)


def energy(report: Report) -> Table:
    """Energy of one inference."""
    columns = columns_of("Rung", "Device", ">Energy, mJ", ">Mean power, W", ">Queries", "=Source")
    rows = [
        cells(
            row.rung,
            row.device,
            text.number(row.energy_mj),
            text.number(row.power_w),
            text.count(row.n) if row.energy_mj is not None else text.MISSING,
            row.source,
        )
        for row in report.energy
    ]
    return Table("energy", "Energy of one inference", columns, tuple(rows), "With what the device draws anyway.")


def worth(report: Report) -> Table:
    """Whether int8 was worth it."""
    columns = columns_of("Device", ">Against float32", ">95 %", ">Against float16", ">95 % ", "=Was int8 worth it?")
    rows = [
        cells(
            row.device,
            text.MISSING if row.float32_speedup is None else text.ratio(row.float32_speedup),
            text.ratio_interval(row.float32_ci95),
            text.MISSING if row.float16_speedup is None else text.ratio(row.float16_speedup),
            text.ratio_interval(row.float16_ci95),
            Cell(row.sentence, {True: "good", False: "bad", None: "unsure"}[row.worth]),  # type: ignore[arg-type]
        )
        for row in report.worth
    ]
    note = "Float time over int8 time of the same student on that device, measured in turns; above 1 int8 is faster."
    return without_empty(Table("worth", "Was int8 worth it?", columns, tuple(rows), note), "Against float16", "95 % ")


def costly(report: Report) -> Table:
    """What int8 cost, by operator."""
    columns = columns_of("Operator", "Type", "Device", ">Mean, µs", ">Share", ">In float32, µs", "=Why")
    rows = [
        cells(
            one.name,
            one.op,
            row.device,
            text.number(one.mean_us),
            text.percent(one.share, decimals=1),
            text.number(one.float_us),
            one.why,
        )
        for row in report.worth
        for one in row.operators
    ]
    return Table("costly", "What cost int8 time", columns, tuple(rows), "The most expensive first.")


def golden(report: Report) -> Table:
    """Golden vectors that were replayed."""
    columns = columns_of("File", "Device", ">Samples", ">Max error", "=Result")
    rows = [
        cells(
            row.file,
            row.device,
            text.count(row.samples),
            text.number(row.max_abs_error),
            Cell(f"{'PASS' if row.passed else 'FAIL'}: {row.reason}", "good" if row.passed else "bad"),
        )
        for row in report.golden
    ]
    return Table("golden", "Golden vectors", columns, tuple(rows), "Answers there against those where it was packed.")


def baseline(report: Report) -> Table:
    """Latencies against an earlier report."""
    columns = columns_of(
        "Rung", "Device", "What", "~>Threads", ">Percentile", ">Before, ms", ">Now, ms", ">Change", ">95 %", "Verdict"
    )
    rows = [
        cells(
            row.rung,
            row.device,
            "end to end" if row.what == "end_to_end" else row.what,
            text.count(row.threads),
            text.MISSING if row.percentile is None else f"p{row.percentile:g}",
            text.number(row.before_ms),
            text.number(row.after_ms),
            text.MISSING if row.ratio is None else text.percent(row.ratio - 1, decimals=1, signed=True),
            _signed((row.ci95[0] - 1, row.ci95[1] - 1) if row.ci95 else None),
            Cell(row.verdict, TONES[row.verdict]),
        )
        for row in report.baseline
    ]
    allowed = f"{report.baseline[0].max_regression:.1%}" if report.baseline else ""
    note = f"FAIL only where the whole interval is more than {allowed} slower; a block bootstrap of either report."
    return Table("baseline", "Against the baseline", columns, tuple(rows), note)


def _not_latency(report: Report) -> str:
    emulated = [row.device for row in report.devices if row.emulated]
    return f" Times of {', '.join(emulated)} are of an emulated processor and no latency." if emulated else ""
