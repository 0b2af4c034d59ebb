"""What a long run shows: drift, falling clocks, heat, throttling; and whether a measurement counts at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from edgekd._report_device_model import EnergyRow, Sustained, SustainedPoint, SustainedReading
from edgekd._statistics import block_percentiles, nearest_rank, supported_percentile
from edgekd.devices._place import Measured, Reading

__all__ = ["TRIP_C", "clock_ratio", "drift_with_interval", "energy_of", "invalid_reason", "sustained_of", "trip_of"]

TRIP_C = 80.0
"""Taken for the temperature at which a device starts to hold itself back, where it tells no trip point of its own."""
_LOWEST_CLOCK = 0.8
_POINTS = 120
_MOST_READINGS = 240
_FEWEST_FOR_DRIFT = 20


def trip_of(details: Mapping[str, Any]) -> float:
    """The temperature in degrees Celsius above which a fallen clock counts as throttling.

    Args:
        details: what the device says about itself; its lowest trip point is `trip_temperature_c`.
    """
    told = details.get("trip_temperature_c")
    return float(told) if isinstance(told, (int, float)) and told > 0 else TRIP_C


def invalid_reason(readings: Sequence[Reading], *, cores: Sequence[int], trip_c: float) -> str | None:
    """Why a measurement does not count, in one sentence; None where it does.

    A device that says that it is held back is believed. Else a clock that fell under 0.8 of its first value while a
    zone was at the trip point or above is taken for it.

    Args:
        readings: before, during and after the queries, in the order of time.
        cores: that the program was pinned to, whose clocks count; empty for all.
        trip_c: degrees Celsius.
    """
    held = [(one.at_ms, word) for one in readings for word in one.throttled or ()]
    if held:
        words = ", ".join(dict.fromkeys(word for _, word in held))
        at_s = max(0.0, held[0][0] / 1e3)
        return (
            f"the device was held back ({words}), first seen {at_s:.0f} s into the run, so that its times are not its"
            " own. Cool it, power it better or lower its load, then measure again."
        )
    ratio, hottest = clock_ratio(readings, cores), _hottest(readings)
    if ratio is not None and ratio < _LOWEST_CLOCK and hottest is not None and hottest >= trip_c:
        return (
            f"the clock fell to {ratio:.0%} of its first value while the device was at {hottest:.0f} degrees Celsius"
            f" (trip point {trip_c:.0f}): heat held it back. Cool it, then measure again."
        )
    return None


def clock_ratio(readings: Sequence[Reading], cores: Sequence[int] = ()) -> float | None:
    """The lowest clock over the first one; None where fewer than two readings have clocks."""
    clocks = [clock for one in readings if (clock := _clock(one, cores)) is not None]
    return min(clocks) / clocks[0] if len(clocks) > 1 and clocks[0] > 0 else None


def drift_with_interval(samples: Sequence[float], *, seed: int = 0) -> tuple[float | None, tuple[float, float] | None]:
    """Median of the last tenth over that of the first, minus 1, and its 95 % bootstrap interval.

    None under 20 samples; the interval is None where a tenth has fewer than 10.

    >>> drift_with_interval([1.0] * 100 + [2.0] * 100)
    (1.0, (1.0, 1.0))
    """
    if len(samples) < _FEWEST_FOR_DRIFT:
        return None, None
    tenth = len(samples) // 10
    first, last = samples[:tenth], samples[-tenth:]
    drift = nearest_rank(last, 50) / nearest_rank(first, 50) - 1
    if tenth < 10:
        return drift, None
    ratios = block_percentiles(last, 50, seed=seed) / block_percentiles(first, 50, seed=seed + 1)
    low, high = np.quantile(ratios, [0.025, 0.975]) - 1
    return drift, (float(low), float(high))


def sustained_of(
    measured: Measured, name: str, *, rung: str, target: str | None, device: str, confidence: float, trip_c: float
) -> Sustained:
    """The row of a report about a model that ran without a pause.

    Args:
        measured: the run.
        name: of the model in it.
        rung, target, device: what ran, and where.
        confidence: one-sided, of the percentiles.
        trip_c: degrees Celsius.
    """
    timed = measured.models[name]
    samples, starts = timed.samples_ms, timed.started_ms
    drift, interval = drift_with_interval(samples)
    words = [word for one in measured.readings for word in one.throttled or ()]
    return Sustained(
        rung=rung,
        target=target,
        device=device,
        seconds=(starts[-1] + samples[-1]) / 1e3,
        n=len(samples),
        p50_ms=supported_percentile(samples, 50, confidence),
        p90_ms=supported_percentile(samples, 90, confidence),
        drift=drift,
        drift_ci95=interval,
        min_clock_ratio=clock_ratio(measured.readings, measured.cores),
        max_temperature_c=_hottest(measured.readings),
        trip_temperature_c=trip_c if _hottest(measured.readings) is not None else None,
        throttled=list(dict.fromkeys(words)),
        invalid=invalid_reason(measured.readings, cores=measured.cores, trip_c=trip_c),
        points=_points(starts, samples),
        readings=_readings(measured),
    )


def energy_of(measured: Measured, name: str, *, rung: str, target: str | None, device: str) -> EnergyRow:
    """Energy of one inference over a run of one model: a counter's difference, or mean power times time.

    What the device draws without the model is part of it: only the whole can be read.
    """
    timed = measured.models[name]
    n = len(timed.samples_ms)
    seconds = (timed.started_ms[-1] + timed.samples_ms[-1]) / 1e3
    watts = _power(measured.readings) if measured.energy_source is not None else None
    return EnergyRow(
        rung=rung,
        target=target,
        device=device,
        energy_mj=None if watts is None else 1e3 * watts * seconds / n,
        power_w=watts,
        n=n,
        source="not available" if watts is None else str(measured.energy_source),
    )


def _power(readings: Sequence[Reading]) -> float | None:
    """Mean power in watts: of an energy counter from the first reading to the last, else of the power readings."""
    counted = [one for one in readings if one.energy_j is not None]
    if len(counted) > 1:
        joules = (counted[-1].energy_j or 0.0) - (counted[0].energy_j or 0.0)
        seconds = (counted[-1].at_ms - counted[0].at_ms) / 1e3
        # a counter that started anew in between tells nothing
        if joules > 0 and seconds > 0:
            return joules / seconds
    powers = [one.power_w for one in readings if one.power_w is not None]
    return fmean(powers) if powers else None


def _clock(reading: Reading, cores: Sequence[int]) -> float | None:
    """The mean clock of the cores that work, or the highest where it is not known which do."""
    clocks = reading.clocks_mhz or []
    used = [clocks[core] for core in cores if core < len(clocks)]
    if used:
        return fmean(used)
    return max(clocks) if clocks else None


def _hottest(readings: Sequence[Reading]) -> float | None:
    values = [value for one in readings for value in (one.temperatures_c or {}).values()]
    return max(values, default=None)


def _points(starts: Sequence[float], samples: Sequence[float]) -> list[SustainedPoint]:
    """Stretches of equal time, with the queries that began in them; empty ones are left out."""
    width = (starts[-1] + samples[-1]) / _POINTS
    stretches: dict[int, list[int]] = {}
    for index, start in enumerate(starts):
        stretches.setdefault(min(_POINTS - 1, int(start / width)), []).append(index)
    return [
        SustainedPoint(
            at_s=(stretch + 0.5) * width / 1e3,
            p50_ms=nearest_rank([samples[one] for one in members], 50),
            max_ms=max(samples[one] for one in members),
        )
        for stretch, members in sorted(stretches.items())
    ]


def _readings(measured: Measured) -> list[SustainedReading]:
    step = -(-len(measured.readings) // _MOST_READINGS)
    return [
        SustainedReading(
            at_s=one.at_ms / 1e3,
            clock_mhz=_clock(one, measured.cores),
            temperature_c=_hottest([one]),
            throttled=list(one.throttled or ()),
        )
        # one that says that the device was held back is never thinned out
        for index, one in enumerate(measured.readings)
        if index % step == 0 or one.throttled
    ]
