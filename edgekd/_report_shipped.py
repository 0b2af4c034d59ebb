"""The report's tables of what is shipped and where it came from: int8 coverage, parity, engines, lineage."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd import _report_format as text
from edgekd._report_file_model import Operator
from edgekd._report_model import Report, Stage
from edgekd._table import Cell, Table, Tone, cells, columns_of, label, without_empty

__all__ = [
    "TOP_OPERATORS",
    "engines",
    "environment",
    "fusion",
    "islands",
    "lineage",
    "operator_groups",
    "operators",
    "parity",
    "stages",
]

TOP_OPERATORS = 12  # the slowest of each model; the rest is summed up


def fusion(report: Report) -> Table:
    """How many operators run as int8."""
    columns = columns_of(
        "Target",
        ">Coverage",
        ">Int8 operators",
        ">Can be int8",
        "=Float by design",
        "~=Float by choice",
        "~=Operators that run",
    )
    rows = [
        cells(
            row.target,
            Cell(text.percent(row.coverage, decimals=1), "good" if row.coverage == 1 else "bad"),
            text.count(row.int8),
            text.count(row.quantizable),
            _counted(row.legitimate),
            ", ".join(row.by_choice) or "none",
            _counted(row.operators),
        )
        for row in report.fusion
    ]
    note = "Read from the optimized graph that the runtime really executes."
    return Table("fusion", "Int8 coverage", columns, tuple(rows), note)


def _counted(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{number} {name}" for name, number in ordered) or "none"


def islands(report: Report) -> Table:
    """Operators that stayed in float, with cause and remedy."""
    columns = columns_of("Target", "Operator", "Type", "=Cause", "=Remedy")
    rows = [
        cells(row.target, island.name, island.op, island.cause, island.remedy)
        for row in report.fusion
        for island in row.float_islands
    ]
    return Table("islands", "Float islands", columns, tuple(rows), "Operators that could be int8 and are not.")


def operators(report: Report) -> Table:
    """Mean time of the slowest operators of each model."""
    columns = columns_of("Rung", "Target", "Operator", "Type", "Kernel", ">Mean, µs", ">Share")
    rows = [
        cells(
            row.rung,
            row.target or text.MISSING,
            row.name,
            row.op,
            "int8" if row.int8 else "float",
            text.number(row.mean_us),
            text.percent(row.share, decimals=1),
        )
        for group in operator_groups(report.operators).values()
        for row in group[:TOP_OPERATORS]
    ]
    note = f"The {TOP_OPERATORS} slowest of each model; report.json holds all."
    return Table("operators", "Time by operator", columns, tuple(rows), note)


def operator_groups(rows: Sequence[Operator]) -> dict[str, list[Operator]]:
    """The operators of each model, the slowest first."""
    groups: dict[str, list[Operator]] = {}
    for row in sorted(rows, key=lambda row: -row.mean_us):
        groups.setdefault(label(row.rung, row.target), []).append(row)
    # in the order of the report, not of the slowest operator
    return {name: groups[name] for name in dict.fromkeys(label(row.rung, row.target) for row in rows)}


def parity(report: Report) -> Table:
    """Each exported file against its torch program."""
    columns = columns_of(
        "Target", "File", ">Top-1 agreement", "~>Gate", "~>Samples", ">Max error", ">Mean error", ">SQNR, dB"
    )
    rows = [
        cells(
            row.target,
            row.file,
            Cell(text.percent(row.top1_agreement, decimals=3), _gate_tone(row.top1_agreement, row.min_agreement)),
            text.MISSING if row.min_agreement is None else f"at least {text.percent(row.min_agreement)}",
            text.count(row.n),
            text.number(row.max_abs_error),
            text.number(row.mean_abs_error),
            "equal" if row.sqnr_db is None and row.max_abs_error == 0 else text.number(row.sqnr_db),
        )
        for row in report.parity
    ]
    note = "Each exported file against its torch program; errors are of logits."
    return Table("parity", "Export parity", columns, tuple(rows), note)


def _gate_tone(value: float, gate: float | None) -> Tone:
    if gate is None:
        return ""
    return "good" if value >= gate else "bad"


def engines(report: Report) -> Table:
    """Files built for one device."""
    columns = columns_of("File", "Library", "Version", "Compute capability", "Precision", ">Size", "=Status")
    rows = [
        cells(
            row.path,
            row.library,
            row.version,
            row.compute_capability or text.MISSING,
            row.precision or text.MISSING,
            text.size(row.size_bytes),
            row.status,
        )
        for row in report.engines
    ]
    note = "An engine runs only with the library version and GPU generation it was built for."
    return Table("engines", "Engines", columns, tuple(rows), note)


def stages(report: Report) -> Table:
    """Time and memory of each stage, and of this run."""
    rows = [
        cells(
            row.stage,
            text.duration(row.seconds),
            text.mebibytes(row.peak_memory_mib),
            text.mebibytes(row.gpu_memory_mib),
            "already there" if row.cached else "done",
        )
        for row in report.stages
    ]
    made = [row for row in report.stages if not row.cached]
    if rows:
        total = text.duration(sum(row.seconds for row in made))
        rows.append(cells("this run", total, *(text.mebibytes(peak) for peak in _peaks(made)), ""))
    columns = columns_of("Stage", ">Time", ">Peak memory", "~>Peak GPU memory", "This run")
    return without_empty(Table("stages", "Stages", columns, tuple(rows)), "Peak memory", "Peak GPU memory")


def _peaks(made: Sequence[Stage]) -> tuple[float | None, float | None]:
    host = [row.peak_memory_mib for row in made if row.peak_memory_mib is not None]
    gpu = [row.gpu_memory_mib for row in made if row.gpu_memory_mib is not None]
    return max(host, default=None), max(gpu, default=None)


def lineage(report: Report) -> Table:
    """The artifacts and what each was made from."""
    columns = columns_of("Stage", "Kind", "Id", "Made from", "Key", "Path")
    rows = [
        cells(row.stage, row.kind, _short(row.id), _all_short(row.parents), _short(row.key), row.path)
        for row in report.lineage
    ]
    return Table(
        "lineage", "Lineage", columns, tuple(rows), "Id: hash of the content. Key: hash of what was asked for."
    )


def _short(identity: str) -> str:
    return identity[:12]


def _all_short(identities: Sequence[str]) -> str:
    return ", ".join(_short(one) for one in identities) or text.MISSING


def environment(report: Report) -> Table:
    """Versions and the machine, flattened."""
    rows = [cells(key, value) for key, value in text.flattened(report.environment)]
    return Table("environment", "Environment", columns_of("Item", "=Value"), tuple(rows))
