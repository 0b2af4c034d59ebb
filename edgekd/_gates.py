"""Every gate of a report as one list: what is checked, how it ended, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgekd._report_device_model import EndToEndRow, Outcome
from edgekd._report_file_model import ParityRow
from edgekd._report_model import Latency, Report

__all__ = ["INT8_RUNG", "Gate", "GateName", "gates", "overall"]

INT8_RUNG = "onnx_int8"
GateName = Literal["parity", "fusion", "golden", "placement", "budget", "baseline"]


@dataclass(frozen=True)
class Gate:
    """One gate.

    Args:
        name: what kind of check.
        subject: what was checked, "onnx_int8 onnxruntime_x86 on cpu".
        outcome: PASS, FAIL, or INCONCLUSIVE and INVALID where the measurement decides nothing.
        reason: in a sentence.
    """

    name: GateName
    subject: str
    outcome: Outcome
    reason: str


def gates(report: Report, *, rung: str = INT8_RUNG) -> list[Gate]:
    """The gates of a report, in the order of the pipeline.

    Args:
        report: with its rows; its verdict is not read.
        rung: whose latency is held against the budget.
    """
    return [
        *_parity(report),
        *_fusion(report),
        *_golden(report),
        *_placement(report),
        *_budget(report, rung),
        *_baseline(report),
    ]


def overall(found: list[Gate]) -> Outcome:
    """One answer from all gates: a failure decides, then an invalid measurement, then one that shows nothing."""
    ends = {gate.outcome for gate in found}
    order: tuple[Outcome, ...] = ("FAIL", "INVALID", "INCONCLUSIVE")
    return next((one for one in order if one in ends), "PASS")


def _parity(report: Report) -> Iterator[Gate]:
    for row in report.parity:
        if row.min_agreement is None:
            continue
        differs = _differing(row) > max(1, int((1 - row.min_agreement) * row.n))
        reason = (
            f"{row.target}: {row.file} agrees with its torch program on {row.top1_agreement:.3%} of {row.n} samples, at"
            f" least {row.min_agreement:.3%} is needed."
        )
        yield Gate("parity", f"{row.file} {row.target}", "FAIL" if differs else "PASS", reason)


def _differing(row: ParityRow) -> int:
    """Samples whose class differs; a single one, two logits that tie, says nothing on a small split."""
    return round((1 - row.top1_agreement) * row.n)


def _fusion(report: Report) -> Iterator[Gate]:
    for row in report.fusion:
        if row.coverage == 1.0:
            reason = f"{row.target}: {row.int8} of {row.quantizable} quantizable operators run as int8."
            yield Gate("fusion", row.target, "PASS", reason)
            continue
        first = row.float_islands[0]
        reason = (
            f"{row.target}: {row.quantizable - row.int8} of {row.quantizable} quantizable operators stay float; first:"
            f" {first.op} '{first.name}': {first.cause}"
        )
        yield Gate("fusion", row.target, "FAIL", reason)


def _golden(report: Report) -> Iterator[Gate]:
    for row in report.golden:
        yield Gate("golden", f"{row.file} on {row.device}", "PASS" if row.passed else "FAIL", row.reason)


def _placement(report: Report) -> Iterator[Gate]:
    for row in report.placement:
        subject = " ".join(part for part in (row.rung, row.target, f"on {row.device}") if part)
        yield Gate("placement", subject, "PASS" if row.passed else "FAIL", f"{subject}: {row.reason}")


def _budget(report: Report, rung: str) -> Iterator[Gate]:
    rows: list[Latency | EndToEndRow] = [*report.latency, *report.end_to_end]
    for row in rows:
        if row.rung != rung or row.verdict is None or not row.is_latency:
            continue
        what = " end to end" if isinstance(row, EndToEndRow) else ""
        subject = " ".join(part for part in (row.rung, row.target, f"on {row.device}{what}") if part)
        yield Gate("budget", subject, row.verdict, f"{row.target} on {row.device}{what}: {row.reason}")
    for sustained in report.sustained:
        if sustained.invalid and sustained.rung == rung and sustained.is_latency:
            where = f"{sustained.target} on {sustained.device}, sustained"
            yield Gate("budget", f"{sustained.rung} {where}", "INVALID", f"{where}: {sustained.invalid}")


def _baseline(report: Report) -> Iterator[Gate]:
    for row in report.baseline:
        percentile = "" if row.percentile is None else f" p{row.percentile:g}"
        parts = (row.rung, row.target, f"on {row.device}", "" if row.what == "inference" else "end to end")
        subject = " ".join(part for part in parts if part) + percentile
        yield Gate("baseline", subject, row.verdict, row.reason)
