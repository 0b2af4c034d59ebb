"""Rates of a profile from latencies: a least-squares fit in logarithms that stays near what it knew before.

The logarithm of each latency is explained by the logarithms of utilisations, of the memory's share and of the
overheads. Each of them is drawn to its value in the profile given, with the width below, so that one latency moves
what it tells about and leaves the rest. Errors are relative: 10 % counts the same at 1 ms and at 100 ms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgekd._estimate_profile import DeviceProfile, Rates
from edgekd._roofline import KINDS, TYPES, ElementType, Kind, Work, speeds_of, total_ms, total_ms_at
from edgekd.errors import UsageError

__all__ = ["Observation", "fitted", "fitted_with_spreads", "held_out", "starting_rates"]

_POINT_WIDTH = 0.07
"""Of the logarithm of one latency: its own noise, and what the model cannot say."""
_STARTING = "assumed: round numbers, as every fit starts from"
_LARGE_MISS = 1.5  # widths
_SHARE_WIDTH, _MEMORY_WIDTH, _OVERHEAD_WIDTH = 0.8, 0.4, 0.7
_MOST_SHARE = 4.0
# of each element type by kind, in the order of KINDS
_CPU_SHARES: Mapping[ElementType, Sequence[float]] = {
    "int8": (0.4, 0.06, 0.25, 0.03, 0.06, 0.06),
    "float16": (0.5, 0.15, 0.3, 0.1, 0.1, 0.1),
    "float32": (0.5, 0.2, 0.3, 0.15, 0.15, 0.15),
}
_GPU_SHARES: Mapping[ElementType, Sequence[float]] = {
    "int8": (0.2, 0.005, 0.1, 0.01, 0.02, 0.02),
    "float16": (0.3, 0.01, 0.15, 0.02, 0.04, 0.04),
    "float32": (0.5, 0.1, 0.3, 0.2, 0.2, 0.2),
}
_TIED: Mapping[Kind, Kind] = {"gemm": "conv"}
"""Kinds that move along with another where no latency tells them apart."""


@dataclass(frozen=True)
class Observation:
    """A latency and what ran in it.

    Args:
        name: of the network; points of one network are held out together.
        work: its operators, in the element type that ran.
        threads: of the runtime.
        latency_ms: measured.
    """

    name: str
    work: Work
    threads: int
    latency_ms: float


@dataclass(frozen=True)
class _Parameter:
    """One number that is fitted: where it stands in the rates, and how far it may go."""

    where: tuple[str, ...]
    width: float


def starting_rates(processor: Literal["cpu", "gpu"]) -> Rates:
    """What every fit starts from and is drawn to: round numbers that no latency in this project was used for."""
    shares = _CPU_SHARES if processor == "cpu" else _GPU_SHARES
    utilisation: dict[ElementType, dict[Kind, float]] = {
        element_type: dict(zip(KINDS, values, strict=True)) for element_type, values in shares.items()
    }
    overhead_us = 3.0 if processor == "cpu" else 8.0
    return Rates(utilisation=utilisation, memory_share=0.6, overhead_us=overhead_us, source=_STARTING)


def fitted(
    profile: DeviceProfile, seen: Sequence[Observation], *, free: Sequence[Kind] = ("conv", "depthwise")
) -> DeviceProfile:
    """A profile whose rates explain latencies.

    Args:
        profile: the peaks, and the rates to start from.
        seen: latencies, at least one.
        free: kinds whose utilisation is fitted for each element type that was seen; the others keep theirs.

    Raises:
        UsageError: no latencies.
    """
    if not seen:
        raise UsageError("A profile is fitted to at least one latency, got none.")
    parameters = _parameters(profile, seen, free)
    solution = _solve(profile, seen, parameters)
    return _with(profile, parameters, solution.x)


def fitted_with_spreads(
    profile: DeviceProfile, seen: Sequence[Observation], *, free: Sequence[Kind] = ("conv", "depthwise")
) -> tuple[DeviceProfile, dict[str, tuple[float, float]]]:
    """As `fitted`, and a 95 % interval of each fitted rate, by its name, "utilisation.int8.conv".

    From the curvature of the fit, with the width that its residuals have, or the one assumed where that is larger.
    """
    if not seen:
        raise UsageError("A profile is fitted to at least one latency, got none.")
    parameters = _parameters(profile, seen, free)
    solution = _solve(profile, seen, parameters)
    covariance = np.linalg.pinv(solution.jac.T @ solution.jac)
    freedom = max(len(seen) - len(parameters), 1)
    scale = max(float(np.sum(solution.fun[: len(seen)] ** 2)) / freedom, 1.0)
    widths = 1.96 * np.sqrt(np.diag(covariance) * scale)
    intervals = {
        ".".join(one.where): (math.exp(middle - width), math.exp(middle + width))
        for one, middle, width in zip(parameters, solution.x, widths, strict=True)
    }
    return _with(profile, parameters, solution.x), intervals


def held_out(
    profile: DeviceProfile, seen: Sequence[Observation], *, free: Sequence[Kind] = ("conv", "depthwise")
) -> list[float | None]:
    """For each latency, the milliseconds that a profile fitted without its network says; None where that is all.

    Args:
        profile: the peaks, and the rates to start from, which may not come from these latencies.
        seen: the latencies.
        free: as in `fitted`.
    """
    found: list[float | None] = []
    without: dict[str, DeviceProfile | None] = {}
    for one in seen:
        if one.name not in without:
            rest = [other for other in seen if other.name != one.name]
            without[one.name] = fitted(profile, rest, free=free) if rest else None
        other = without[one.name]
        found.append(None if other is None else total_ms(one.work, other, threads=one.threads))
    return found


def _parameters(profile: DeviceProfile, seen: Sequence[Observation], free: Sequence[Kind]) -> list[_Parameter]:
    found = [_Parameter(("memory_share",), _MEMORY_WIDTH), _Parameter(("overhead_us",), _OVERHEAD_WIDTH)]
    if profile.rates.call_us > 0.0:
        found.append(_Parameter(("call_us",), _OVERHEAD_WIDTH))
    for position, element_type in enumerate(TYPES):
        kinds = {KINDS[kind] for one in seen for kind in np.unique(one.work.kind[one.work.element_type == position])}
        known = profile.rates.utilisation.get(element_type, {})
        found += [
            _Parameter(("utilisation", element_type, kind), _SHARE_WIDTH)
            for kind in free
            if kind in kinds and kind in known
        ]
    return found


def _solve(profile: DeviceProfile, seen: Sequence[Observation], parameters: Sequence[_Parameter]) -> Any:
    from scipy.optimize import least_squares

    start = np.log([_get(profile, one) for one in parameters])
    widths = np.array([one.width for one in parameters])
    highest = np.log([_highest(one) for one in parameters])

    def residuals(values: np.ndarray) -> np.ndarray:
        other = _with(profile, parameters, values)
        speeds = {threads: speeds_of(other, threads) for threads in {one.threads for one in seen}}
        misses = [math.log(total_ms_at(one.work, speeds[one.threads]) / one.latency_ms) / _POINT_WIDTH for one in seen]
        return np.concatenate([_robust(np.array(misses)), (values - start) / widths])

    return least_squares(residuals, np.minimum(start, highest - 1e-6), bounds=(-np.inf, highest), x_scale=widths)


def _robust(misses: np.ndarray) -> np.ndarray:
    """Misses that grow as their square root where they are large: one network that a runtime runs otherwise than
    counted may not move all rates (the pseudo-Huber loss as least squares)."""
    squares = 2.0 * _LARGE_MISS**2 * (np.sqrt(1.0 + (misses / _LARGE_MISS) ** 2) - 1.0)
    moved: np.ndarray = np.sign(misses) * np.sqrt(squares)
    return moved


def _highest(parameter: _Parameter) -> float:
    return {"memory_share": 1.0, "utilisation": _MOST_SHARE}.get(parameter.where[0], 1e6)


def _get(profile: DeviceProfile, parameter: _Parameter) -> float:
    if parameter.where[0] == "utilisation":
        element_type, kind = parameter.where[1:]
        return profile.rates.utilisation[element_type][kind]  # type: ignore[index]
    return max(float(getattr(profile.rates, parameter.where[0])), 1e-3)


def _with(profile: DeviceProfile, parameters: Sequence[_Parameter], logarithms: np.ndarray) -> DeviceProfile:
    """The profile with other rates; kinds that nothing told apart keep their ratio to the kind that they go with."""
    shares: dict[ElementType, dict[Kind, float]] = {
        one: dict(kinds) for one, kinds in profile.rates.utilisation.items()
    }
    rest: dict[str, float] = {}
    own = {one.where[1:] for one in parameters if one.where[0] == "utilisation"}
    for one, logarithm in zip(parameters, logarithms, strict=True):
        value = float(np.exp(logarithm))
        if one.where[0] != "utilisation":
            rest[one.where[0]] = value
            continue
        element_type, kind = one.where[1:]
        before = profile.rates.utilisation[element_type]  # type: ignore[index]
        shares[element_type][kind] = min(value, _MOST_SHARE)  # type: ignore[index]
        for tied, leader in _TIED.items():
            if leader == kind and (element_type, tied) not in own and tied in before:
                moved = before[tied] * value / before[leader]
                shares[element_type][tied] = min(moved, _MOST_SHARE)  # type: ignore[index]
    # not validated again: this runs thousands of times in a fit
    return profile.model_copy(update={"rates": profile.rates.model_copy(update={"utilisation": shares, **rest})})
