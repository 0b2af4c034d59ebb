"""The latency of a model on a device that is not there: counted work against a profile of the device.

An estimate is never a measurement: it has its own kind, says so wherever it is shown, and stands in no report. Its
interval is what the profile got wrong on published latencies of networks that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from edgekd._estimate_graph import Counted, count_operators
from edgekd._estimate_profile import DeviceProfile, Point, find_profile, profile_names
from edgekd._roofline import ElementType, Kind, Operator, operator_us, work_of
from edgekd.errors import UsageError
from edgekd.spec import Frozen

__all__ = [
    "DeviceProfile",
    "Estimate",
    "KindRow",
    "OperatorRow",
    "Point",
    "count_operators",
    "estimate",
    "find_profile",
    "profile_names",
]

NOTICE = "ESTIMATE: computed from a profile of the device, not measured on it."

Answer = Literal["likely", "unlikely", "cannot tell"]
_SLOWEST = 10
_FAR = 10.0  # times the largest, or a share of the smallest latency that was checked


class KindRow(Frozen):
    """Operators of one kind and element type together.

    Args:
        kind, element_type: of all of them.
        operators: how many.
        macs: multiply-accumulates.
        estimate_ms: of all of them.
        share: of the whole, in [0, 1].
    """

    kind: Kind
    element_type: ElementType
    operators: int
    macs: int
    estimate_ms: float
    share: float


class OperatorRow(Frozen):
    """One operator.

    Args:
        name, op: of its node in the file.
        kind, element_type: as it runs.
        macs: multiply-accumulates.
        bytes_moved: weights and activations, read and written.
        estimate_us: of it.
    """

    name: str
    op: str
    kind: Kind
    element_type: ElementType
    macs: int
    bytes_moved: int
    estimate_us: float


class Estimate(Frozen):
    """What a profile says about a file.

    Args:
        kind: "estimate": no reader can take it for a measurement.
        notice: the same in words.
        file: name of the ONNX file.
        profile, device, runtime: whose speed it is.
        basis: what the profile's rates come from.
        batch, threads: of one inference.
        element_type: that most of the work is done in.
        operators: that were counted.
        macs: multiply-accumulates of one inference.
        weight_bytes, activation_bytes: that it moves.
        estimate_ms: of one inference.
        lower_ms, upper_ms: as far off as the worst held-out latency of the profile; None where it is unchecked.
        held_out: latencies of networks that the profile was not fitted to when it was held against them.
        median_error, worst_error: of those, absolute, as fractions.
        budget_ms: that was asked about.
        fits: whether it fits: likely where the whole interval does, unlikely where none of it does.
        unchecked: why there is no interval; None where there is one.
        by_kind: where the time goes, the largest first.
        slowest: the operators that take longest.
        notes: one sentence each.
    """

    kind: Literal["estimate"] = "estimate"
    notice: str = NOTICE
    file: str
    profile: str
    device: str
    runtime: str
    basis: Literal["published", "probed", "assumed"]
    batch: int
    threads: int
    element_type: ElementType
    operators: int
    macs: int
    weight_bytes: int
    activation_bytes: int
    estimate_ms: float
    lower_ms: float | None = None
    upper_ms: float | None = None
    held_out: int = 0
    median_error: float | None = None
    worst_error: float | None = None
    budget_ms: float | None = None
    fits: Answer | None = None
    unchecked: str | None = None
    by_kind: list[KindRow] = Field(default_factory=list)
    slowest: list[OperatorRow] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


def estimate(
    path: Path,
    *,
    profile: DeviceProfile,
    batch: int = 1,
    threads: int | None = None,
    budget_ms: float | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Estimate:
    """Estimate the latency of an ONNX file on a device.

    Args:
        path: the file.
        profile: the device, from `find_profile`.
        batch: samples in one inference, >= 1.
        threads: of the runtime; those of the profile's latencies unless given. A GPU does not ask.
        budget_ms: latency to hold it against, > 0.
        sizes: sizes of dynamic dimensions by name, other than the batch.

    Raises:
        ModelFileError: the file is damaged or unsafe, or a dynamic dimension has no size.
        MismatchError: the file has a fixed batch of another size.
        UsageError: batch, threads or budget out of range.
    """
    cores = sum(one.count for one in profile.cores)
    threads = profile.threads if threads is None or profile.processor == "gpu" else threads
    if batch < 1 or (budget_ms is not None and budget_ms <= 0.0):
        raise UsageError(f"batch must be at least 1 and the budget above 0 ms, got {batch} and {budget_ms}.")
    if profile.processor == "cpu" and not 1 <= threads <= cores:
        raise UsageError(f"threads must be 1 to {cores}, the cores of '{profile.name}', got {threads}.")
    counted = count_operators(path, batch=batch, sizes=sizes)
    micros = operator_us(work_of(counted.operators), profile, threads=threads)
    total_ms = float(micros.sum() + profile.rates.call_us) / 1e3
    main = _main_type(counted)
    unchecked = _unchecked(profile, main, threads, batch, total_ms)
    factor = None if unchecked else profile.factor
    lower, upper = (None, None) if factor is None else (total_ms / factor, total_ms * factor)
    return Estimate(
        file=path.name,
        profile=profile.name,
        device=profile.title,
        runtime=profile.runtime,
        basis=profile.basis,
        batch=batch,
        threads=threads,
        element_type=main,
        operators=len(counted.operators),
        macs=counted.macs,
        weight_bytes=sum(one.weight_bytes for one in counted.operators),
        activation_bytes=sum(one.read_bytes + one.write_bytes for one in counted.operators),
        estimate_ms=total_ms,
        lower_ms=lower,
        upper_ms=upper,
        held_out=len(profile.checked),
        median_error=profile.median_error,
        worst_error=profile.worst_error,
        budget_ms=budget_ms,
        fits=None if budget_ms is None else answer(budget_ms, lower, upper),
        unchecked=unchecked,
        by_kind=_by_kind(counted, micros, total_ms),
        slowest=_slowest(counted, micros),
        notes=[*counted.notes, *profile.notes, *_caveats(profile, counted)],
    )


def answer(budget_ms: float, lower_ms: float | None, upper_ms: float | None) -> Answer:
    """Whether a budget is likely to hold, from the interval alone; without one nothing can be told.

    >>> answer(10.0, 6.0, 9.0), answer(10.0, 11.0, 14.0), answer(10.0, 8.0, 12.0), answer(10.0, None, None)
    ('likely', 'unlikely', 'cannot tell', 'cannot tell')
    """
    if lower_ms is None or upper_ms is None or lower_ms <= budget_ms < upper_ms:
        return "cannot tell"
    return "likely" if upper_ms <= budget_ms else "unlikely"


def _main_type(counted: Counted) -> ElementType:
    work: dict[ElementType, int] = {}
    for one in counted.operators:
        work[one.element_type] = work.get(one.element_type, 0) + one.work
    return max(work, key=lambda name: work[name])


def _unchecked(
    profile: DeviceProfile, element_type: ElementType, threads: int, batch: int, total_ms: float
) -> str | None:
    """Why the errors of the profile say nothing about this estimate; None where they do."""
    if not profile.checked:
        return "no checked point"
    types = {one.element_type for one in profile.checked}
    if element_type not in types:
        return f"no checked point in {element_type}, only in {', '.join(sorted(types))}"
    if threads not in {one.threads for one in profile.checked}:
        return f"no checked point with {threads} threads"
    if batch not in {one.batch for one in profile.checked}:
        return f"no checked point with a batch of {batch}"
    known = [one.latency_ms for one in profile.checked]
    if not min(known) / _FAR <= total_ms <= max(known) * _FAR:
        return f"far outside the checked latencies, {min(known):.4g} to {max(known):.4g} ms"
    return None


def _caveats(profile: DeviceProfile, counted: Counted) -> list[str]:
    notes = []
    if profile.rates_from is not None:
        notes.append(
            f"Only the peaks are those of this device; what share of them is reached comes from '{profile.rates_from}'."
        )
    missing = {one.element_type for one in counted.operators} - set(profile.cores[0].macs_per_cycle)
    if missing:
        notes.append(f"This device has no peak for {', '.join(sorted(missing))}: counted at the speed of float32.")
    return notes


def _by_kind(counted: Counted, micros: np.ndarray, total_ms: float) -> list[KindRow]:
    groups: dict[tuple[Kind, ElementType], list[int]] = {}
    for position, one in enumerate(counted.operators):
        groups.setdefault((one.kind, one.element_type), []).append(position)
    rows = [
        KindRow(
            kind=kind,
            element_type=element_type,
            operators=len(places),
            macs=sum(counted.operators[place].macs for place in places),
            estimate_ms=float(micros[places].sum()) / 1e3,
            share=float(micros[places].sum()) / 1e3 / total_ms,
        )
        for (kind, element_type), places in groups.items()
    ]
    return sorted(rows, key=lambda row: -row.estimate_ms)


def _slowest(counted: Counted, micros: np.ndarray) -> list[OperatorRow]:
    order = np.argsort(-micros, kind="stable")[:_SLOWEST]
    return [_row(counted.operators[int(place)], float(micros[place])) for place in order]


def _row(one: Operator, micros: float) -> OperatorRow:
    return OperatorRow(
        name=one.name,
        op=one.op,
        kind=one.kind,
        element_type=one.element_type,
        macs=one.macs,
        bytes_moved=one.weight_bytes + one.read_bytes + one.write_bytes,
        estimate_us=micros,
    )
