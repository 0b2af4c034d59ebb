"""What an audit of a file found out, as plain values."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.spec import Frozen

__all__ = ["ConversionRow", "FileAudit", "FloatRow", "IslandRow", "OperatorRow"]


class OperatorRow(Frozen):
    """Operators of one type that do the same kind of work.

    Args:
        op: their type in the graph that runs.
        work: int8, float, conversion (Q, DQ, changes of layout or type), other (shapes, indices), or unknown.
        count: how many.
        time_us: of all of them in one run, microseconds, the medians of each added up; None where nothing was timed.
        share: of the time of all operators, in [0, 1].
    """

    op: str
    work: Literal["int8", "float", "conversion", "other", "unknown"]
    count: int
    time_us: float | None = None
    share: float | None = None


class IslandRow(Frozen):
    """An operator that stayed in float although the target could run it as int8; `share` as in `OperatorRow`."""

    name: str
    op: str
    cause: str
    remedy: str
    share: float | None = None


class FloatRow(Frozen):
    """Operators of one type that are right in float, and why; `share` as in `OperatorRow`."""

    op: str
    count: int
    reason: str
    share: float | None = None


class ConversionRow(Frozen):
    """Conversions of one type at one kind of place; `share` as in `OperatorRow`."""

    op: str
    place: str
    count: int
    share: float | None = None


class FileAudit(Frozen):
    """What an audit found out about a file.

    Args:
        file: its path as given.
        target: what it was audited for.
        int8_asked: whether the file has Q/DQ or 8-bit operators, or int8 was required.
        source: "runtime" where the graph that the runtime made was looked at, "rules" where the rules alone speak.
        quantizable: operators that the target can run as int8; 0 when int8 was not asked.
        int8: of those, how many do; by the rules, how many should.
        coverage: int8 / quantizable, 1.0 when there is nothing to quantize.
        islands: the others, the slowest first.
        legitimate: float operators that are right in float, the slowest first.
        operators: the graph that runs, or the file where it was not run; the slowest first.
        conversions: what is left of Q and DQ, and what the runtime put in, the slowest first.
        conversion_share: of the time of all operators, in [0, 1]; None where nothing was timed.
        total_us: time of all operators in one run, microseconds, the medians of each added up.
        refusals: why the target cannot take the file.
        notes: what else to know, one sentence each.
    """

    schema_version: Literal[1] = 1
    file: str
    target: str
    int8_asked: bool
    source: Literal["runtime", "rules"]
    quantizable: int
    int8: int
    coverage: float
    islands: list[IslandRow]
    legitimate: list[FloatRow]
    operators: list[OperatorRow]
    conversions: list[ConversionRow] = Field(default_factory=list)
    conversion_share: float | None = None
    total_us: float | None = None
    refusals: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether int8 was not asked, or every operator runs as int8 that can."""
        return not self.int8_asked or not (self.islands or self.refusals)
