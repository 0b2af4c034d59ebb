"""One answer from every gate: whether the model may ship."""

from __future__ import annotations

from edgekd._gates import INT8_RUNG, gates, overall
from edgekd._report_model import Latency
from edgekd._statistics import supported_percentile
from edgekd.recipe import BenchSettings
from edgekd.report import Outcome, Report, Verdict

__all__ = ["verdict_of"]


def verdict_of(chosen: BenchSettings, report: Report, *, rung: str = INT8_RUNG) -> Verdict | None:
    """Parity, fusion, golden vectors, placement and baseline must hold, and the budget at the stated percentile.

    None where nothing was checked, and where nothing failed but only an emulated device was measured, whose times are
    no latency.

    Args:
        chosen: the budget.
        report: with all its rows.
        rung: whose latency is held against the budget.
    """
    if not report.parity and not report.latency:
        return None
    found = gates(report, rung=rung)
    rows = [row for row in report.latency if row.rung == rung and row.is_latency and not row.sweep]
    emulated = not rows and any(not row.is_latency for row in report.latency)
    reasons = {one: [gate.reason for gate in found if gate.outcome == one] for one in _ORDER}
    passed = [gate.reason for gate in found if gate.outcome == "PASS" and gate.name in ("budget", "baseline")]
    ends = overall(found)
    if emulated and ends == "PASS":
        return None
    if not rows and not emulated:
        reasons["INCONCLUSIVE"].append("Latency was not measured for any target.")
        ends = "INCONCLUSIVE" if ends == "PASS" else ends
    worst = max(rows, key=lambda row: row.mean_ms, default=None)
    return _verdict(chosen, report, worst, ends, [*(one for kind in _ORDER for one in reasons[kind]), *passed])


_ORDER: tuple[Outcome, ...] = ("FAIL", "INVALID", "INCONCLUSIVE")


def _verdict(
    chosen: BenchSettings, report: Report, worst: Latency | None, ends: Outcome, reasons: list[str]
) -> Verdict:
    return Verdict(
        overall=ends,
        reasons=reasons,
        rung=worst.rung if worst else None,
        target=worst.target if worst else None,
        device=worst.device if worst else None,
        budget_ms=chosen.budget_ms,
        budget_is=chosen.budget_is,
        percentile=chosen.percentile,
        confidence=chosen.confidence,
        measured_ms=_measured(chosen, report, worst) if worst else None,
    )


def _measured(chosen: BenchSettings, report: Report, worst: Latency) -> float | None:
    """The percentile that the budget is about."""
    key = worst.samples
    if chosen.budget_is == "end_to_end":
        same = (
            row
            for row in report.end_to_end
            if (row.rung, row.target, row.device) == (worst.rung, worst.target, worst.device)
        )
        key = next((row.samples for row in same), None)
    samples = report.latency_samples.get(key or "", [])
    return supported_percentile(samples, chosen.percentile, chosen.confidence) if samples else None
