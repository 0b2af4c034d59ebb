"""The rows of an audit: what was found out about each node, counted and timed."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from edgekd._audit_types import ConversionRow, FileAudit, FloatRow, IslandRow, OperatorRow
from edgekd.targets._audit import Examined
from edgekd.targets._base import Audit
from edgekd.targets._conversions import conversions
from edgekd.targets._kernels import float_reason
from edgekd.targets._profile import OperatorTime

__all__ = ["rows_by_rules", "rows_of_audit", "rows_of_run", "with_times"]

_CHANGES = frozenset({"Reorder", "Convert", "QuantizeLinear", "DequantizeLinear"})
"""Types of operators that convert, on runtimes other than ONNX Runtime."""
_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


def rows_of_audit(file: str, found: Audit, *, asked: bool) -> FileAudit:
    """A target's own audit as it is."""
    if not asked:
        found = Audit(found.target, 0, 0, (), {}, found.operators)
    return FileAudit(
        file=file,
        target=found.target,
        int8_asked=asked,
        source="runtime",
        quantizable=found.quantizable,
        int8=found.int8,
        coverage=found.coverage,
        islands=[IslandRow(name=one.name, op=one.op, cause=one.cause, remedy=one.remedy) for one in found.islands],
        legitimate=[
            FloatRow(op=op, count=count, reason=f"float by the rules of {found.target}")
            for op, count in found.legitimate.items()
        ],
        operators=[OperatorRow(op=op, work="unknown", count=count) for op, count in found.operators.items()],
    )


def rows_by_rules(file: str, found: Audit, *, asked: bool) -> FileAudit:
    """What the rules expect of a file that was not run."""
    reasons = [FloatRow(op=op, count=count, reason=float_reason(op)) for op, count in found.legitimate.items()]
    told = rows_of_audit(file, found, asked=asked)
    return told.model_copy(update={"source": "rules", "legitimate": reasons if asked else []})


def rows_of_run(file: str, found: Examined, times: Mapping[str, float], *, target: str, asked: bool) -> FileAudit:
    """What ONNX Runtime did.

    Args:
        file: its path.
        found: with the graph that ran.
        times: microseconds of a run by node of that graph; empty if it was not timed.
        target: name of the target.
        asked: whether int8 was asked.
    """
    rows = _Rows(found, times)
    told = rows_by_rules(file, found.audit(target), asked=asked)
    converted = (node.name for node in rows.nodes if node.work == "conversion")
    return told.model_copy(
        update={
            "source": "runtime",
            "islands": rows.islands(),
            "legitimate": rows.legitimate() if asked else [],
            "operators": rows.operators(),
            "conversions": rows.conversions(),
            "conversion_share": rows.share(converted),
            "total_us": rows.total_us if times else None,
        }
    )


def with_times(rows: FileAudit, times: Sequence[OperatorTime]) -> FileAudit:
    """The rows of a target's audit with the times that its runtime tells, by operator as it runs."""
    total = sum(one.mean_us for one in times)
    groups = _grouped(((one.op, one.int8), one) for one in times)
    converted = sum(one.share for one in times if one.op in _CHANGES)
    operators = [
        OperatorRow(
            op=op,
            work="conversion" if op in _CHANGES else "int8" if int8 else "float",
            count=len(found),
            time_us=sum(one.mean_us for one in found),
            share=sum(one.share for one in found),
        )
        for (op, int8), found in groups.items()
    ]
    shares = {one.name: one.share for one in times}
    islands = [row.model_copy(update={"share": shares.get(row.name)}) for row in rows.islands]
    return rows.model_copy(
        update={
            "operators": sorted(operators, key=lambda row: -(row.share or 0.0)),
            "islands": sorted(islands, key=lambda row: -(row.share or 0.0)),
            "conversion_share": converted,
            "total_us": total,
        }
    )


class _Rows:
    """Counts and times of one run."""

    def __init__(self, found: Examined, times: Mapping[str, float]) -> None:
        if found.ran is None:
            raise RuntimeError("these rows are about a graph that ran")
        self._found = found
        self._ran = found.ran
        self._times = times
        self.nodes = found.ran.nodes
        self.total_us = sum(times.values())

    def share(self, names: Iterable[str]) -> float | None:
        """Of the time of all operators; None where nothing was timed."""
        return sum(self._times.get(name, 0.0) for name in names) / self.total_us if self.total_us else None

    def operators(self) -> list[OperatorRow]:
        groups = _grouped(((node.op, node.work), node.name) for node in self.nodes)
        rows = [
            OperatorRow(op=op, work=work, count=len(names), time_us=self._time(names), share=self.share(names))
            for (op, work), names in groups.items()
        ]
        return sorted(rows, key=lambda row: (-(row.share or 0.0), -row.count, row.op))

    def islands(self) -> list[IslandRow]:
        names = _grouped((node.number, node.name) for node in self.nodes if node.number in self._found.islands)
        rows = [
            IslandRow(
                name=one.name,
                op=one.op,
                cause=one.cause,
                remedy=one.remedy,
                share=self.share(names.get(number, [])),
            )
            for number, one in self._found.islands.items()
        ]
        return sorted(rows, key=lambda row: -(row.share or 0.0))

    def legitimate(self) -> list[FloatRow]:
        groups: dict[str, list[str]] = {}
        counts: dict[str, int] = {}
        for names, op in self._ran.float_nodes(self._found.quantizable):
            groups.setdefault(op, []).extend(names)
            counts[op] = counts.get(op, 0) + 1
        rows = [
            FloatRow(op=op, count=counts[op], reason=float_reason(op), share=self.share(names))
            for op, names in groups.items()
        ]
        return sorted(rows, key=lambda row: (-(row.share or 0.0), -row.count, row.op))

    def conversions(self) -> list[ConversionRow]:
        groups = _grouped(((node.op, place), node.name) for node, place in conversions(self._ran))
        rows = [
            ConversionRow(op=op, place=place, count=len(names), share=self.share(names))
            for (op, place), names in groups.items()
        ]
        return sorted(rows, key=lambda row: (-(row.share or 0.0), -row.count, row.op, row.place))

    def _time(self, names: Iterable[str]) -> float | None:
        return sum(self._times.get(name, 0.0) for name in names) if self.total_us else None


def _grouped(pairs: Iterable[tuple[_Key, _Value]]) -> dict[_Key, list[_Value]]:
    found: dict[_Key, list[_Value]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found
