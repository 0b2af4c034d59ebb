"""The time of operators from their work, their bytes and what a processor can do: a roofline with an overhead.

    time = max(work / (peak x utilisation), bytes / bandwidth) + overhead

for each operator, summed. The peak is that of the operator's element type; the utilisation is what share of it
kernels of its kind reach.

Reference: Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model", 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from edgekd._estimate_profile import DeviceProfile

__all__ = [
    "KINDS",
    "TYPES",
    "ElementType",
    "Kind",
    "Operator",
    "Speeds",
    "Work",
    "operator_us",
    "speeds_of",
    "total_ms",
    "total_ms_at",
    "work_of",
]

Kind = Literal["conv", "depthwise", "gemm", "elementwise", "pool", "move"]
"""What kernels a runtime takes for an operator: dense and grouped convolutions, depthwise ones, matrix products,
everything that goes through values one by one, windows without weights, and what only moves values."""

ElementType = Literal["int8", "float16", "float32"]

KINDS: tuple[Kind, ...] = get_args(Kind)
TYPES: tuple[ElementType, ...] = get_args(ElementType)
BYTES: dict[ElementType, int] = {"int8": 1, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Operator:
    """One operator as it runs: with its bias, its batch normalisation and its ReLU inside.

    Args:
        name: of its node.
        op: its type in the file, "Conv".
        kind: what kernels it takes.
        element_type: that it computes in.
        macs: multiply-accumulates; 0 for what has no weights and is no product.
        work: operations that the peak is divided by: `macs` where there are any, else operations on elements.
        weights: stored elements that it reads; those of a convolution or a matrix product.
        reads: elements of activations that it reads.
        writes: elements that it writes.
        read_bytes, write_bytes: their bytes, in the types that they have.
        weight_bytes: of the stored elements.
    """

    name: str
    op: str
    kind: Kind
    element_type: ElementType
    macs: int
    work: int
    weights: int
    reads: int
    writes: int
    weight_bytes: int
    read_bytes: int
    write_bytes: int

    def as_type(self, element_type: ElementType) -> Operator:
        """The same operator with every tensor in another element type."""
        size = BYTES[element_type]
        return Operator(
            self.name, self.op, self.kind, element_type, self.macs, self.work, self.weights, self.reads, self.writes,
            self.weights * size, self.reads * size, self.writes * size,
        )  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Operators as columns; each array has one entry for each operator, shape (N,).

    Args:
        kind: index into `KINDS`.
        element_type: index into `TYPES`.
        work: operations.
        weight_bytes: read from where weights lie.
        activation_bytes: read and written.
    """

    kind: np.ndarray
    element_type: np.ndarray
    work: np.ndarray
    weight_bytes: np.ndarray
    activation_bytes: np.ndarray


def work_of(operators: Sequence[Operator]) -> Work:
    """Operators as columns."""
    return Work(
        np.array([KINDS.index(one.kind) for one in operators], np.intp),
        np.array([TYPES.index(one.element_type) for one in operators], np.intp),
        np.array([one.work for one in operators], np.float64),
        np.array([one.weight_bytes for one in operators], np.float64),
        np.array([one.read_bytes + one.write_bytes for one in operators], np.float64),
    )


@dataclass(frozen=True)
class Speeds:
    """What a profile comes to with a number of threads.

    Args:
        rates: operations a second by element type and kind, in the order of `TYPES` and `KINDS`.
        memory, cache: bytes a second.
        cache_bytes: of the cache.
        overhead_us, call_us: of every operator, and of every inference.
    """

    rates: np.ndarray
    memory: float
    cache: float
    cache_bytes: int
    overhead_us: float
    call_us: float


def speeds_of(profile: DeviceProfile, threads: int) -> Speeds:
    """The speeds of as many cores as there are threads, the fastest first."""
    rates = np.array([[profile.rate(kind, type_, threads) for kind in KINDS] for type_ in TYPES])
    memory, cache = (one * 1e9 for one in profile.bandwidth_gb_s(threads))
    known = profile.rates
    return Speeds(rates, memory, cache, profile.memory.cache_bytes, known.overhead_us, known.call_us)


def operator_us(work: Work, profile: DeviceProfile, *, threads: int) -> np.ndarray:
    """Microseconds of each operator, shape (N,).

    Weights come from memory unless those of all operators fit into the cache together with the largest activations;
    activations come from the cache where one operator's fit.

    Args:
        work: the operators.
        profile: the device; an element type that it has no peak for runs at that of float32.
        threads: of the runtime, >= 1; as many cores as there are, the fastest first.
    """
    return _operator_us(work, speeds_of(profile, threads))


def total_ms(work: Work, profile: DeviceProfile, *, threads: int) -> float:
    """Milliseconds of all operators, one after another, and of one call of the runtime."""
    return total_ms_at(work, speeds_of(profile, threads))


def total_ms_at(work: Work, speeds: Speeds) -> float:
    """The same from speeds that are known already."""
    return float(_operator_us(work, speeds).sum() + speeds.call_us) / 1e3


def _operator_us(work: Work, speeds: Speeds) -> np.ndarray:
    fits = work.activation_bytes <= speeds.cache_bytes
    largest = float(work.activation_bytes.max(initial=0.0))
    all_cached = work.weight_bytes.sum() + largest <= speeds.cache_bytes
    moving = work.activation_bytes / np.where(fits, speeds.cache, speeds.memory)
    moving = moving + work.weight_bytes / (speeds.cache if all_cached else speeds.memory)
    computing = work.work / speeds.rates[work.element_type, work.kind]
    seconds: np.ndarray = np.maximum(computing, moving)
    return seconds * 1e6 + speeds.overhead_us
