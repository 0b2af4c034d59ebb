"""Every table of a report, built once and rendered by the terminal, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Callable

from edgekd import _report_device as device
from edgekd import _report_measured as measured
from edgekd import _report_quality as quality
from edgekd import _report_sensitivity as precision
from edgekd import _report_shipped as shipped
from edgekd import _report_training as training
from edgekd._report_model import Report
from edgekd._table import Table

__all__ = ["tables"]


def tables(report: Report) -> dict[str, Table]:
    """Every table that has rows, by key, in reading order."""
    builders: tuple[Callable[[Report], Table], ...] = (
        measured.ladder,
        measured.calibration,
        measured.repeats,
        measured.paired,
        lambda one: quality.fidelity(one.distillation),
        lambda one: quality.capacity(one.distillation),
        lambda one: quality.temperature(one.distillation),
        lambda one: quality.similarity(one.distillation),
        measured.latency,
        measured.conditions,
        device.baseline,
        device.end_to_end,
        measured.int8_vs_float,
        device.worth,
        device.costly,
        device.threads,
        device.sustained,
        device.cold,
        device.energy,
        measured.mobile,
        device.placement,
        device.golden,
        device.devices,
        shipped.fusion,
        shipped.islands,
        lambda one: precision.sensitivity(one.sensitivity),
        lambda one: precision.path(one.mixed),
        shipped.operators,
        shipped.parity,
        shipped.engines,
        training.cost,
        training.step_parts,
        shipped.stages,
        shipped.lineage,
        shipped.environment,
    )
    built = (builder(report) for builder in builders)
    return {table.key: table for table in built if table.rows}
