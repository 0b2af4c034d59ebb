"""The records of report.json about the exported files: how much is int8, how exact, how large, what is slow."""

from __future__ import annotations

from pydantic import Field

from edgekd._ladder import Parity
from edgekd._report_device_model import Record

__all__ = ["Engine", "FloatIsland", "Fusion", "Mobile", "Operator", "ParityRow"]


class FloatIsland(Record):
    """An operator that stayed in float although the target could run it as int8."""

    name: str
    op: str
    cause: str
    remedy: str


class Fusion(Record):
    """How much of the shipped model runs as int8.

    Args:
        quantizable: operators that the target can run as int8.
        int8: of those, how many do.
        coverage: int8 / quantizable, a fraction.
        float_islands: the others.
        legitimate: float operators for which the target has no int8 kernel, by type.
        by_choice: layers that stay float because the recipe, the placement search or `max_drop` chose so; they do not
            count as quantizable.
        operators: operators of the graph that really runs, by type.
    """

    target: str
    quantizable: int
    int8: int
    coverage: float
    by_choice: list[str] = Field(default_factory=list)
    float_islands: list[FloatIsland] = Field(default_factory=list)
    legitimate: dict[str, int] = Field(default_factory=dict)
    operators: dict[str, int] = Field(default_factory=dict)


class ParityRow(Parity):
    """An exported file against its torch program, over a whole split.

    Args:
        target, file: which export.
        min_agreement: the gate, a fraction; None without one.
    """

    target: str
    file: str
    min_agreement: float | None = None


class Engine(Record):
    """A file built for one device, and what it is bound to."""

    path: str
    library: str
    version: str
    compute_capability: str | None = None
    size_bytes: int | None = None
    status: str
    target: str | None = None
    precision: str | None = None


class Mobile(Record):
    """What a phone-class user meets: one pinned thread, from a cold start."""

    rung: str
    target: str | None = None
    device: str
    cold_ms: float | None = None
    first_ms: float | None = None
    peak_memory_mib: float | None = None
    size_bytes: int | None = None


class Operator(Record):
    """Mean time of one operator in one model.

    Args:
        share: of the model's operator time, a fraction.
        int8: it runs as an int8 kernel.
    """

    rung: str
    target: str | None = None
    name: str
    op: str
    mean_us: float
    share: float
    int8: bool
