"""Long runs: drift and its interval, throttling, energy; numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd._sustained import TRIP_C, clock_ratio, drift_with_interval, energy_of, invalid_reason, sustained_of, trip_of
from edgekd.devices._place import Measured, Reading, Timed


def timed(samples: list[float]) -> Timed:
    starts = [float(value) for value in np.cumsum([0.0, *samples[:-1]])]
    return Timed(
        provider_requested="CPUExecutionProvider",
        provider_used="CPUExecutionProvider",
        warmup=20,
        steady=True,
        started_ms=starts,
        samples_ms=samples,
    )


def run(samples: list[float], readings: list[Reading], *, source: str | None = None) -> Measured:
    return Measured(models={"m": timed(samples)}, readings=readings, cores=[1], energy_source=source)


def test_drift_is_the_last_tenth_over_the_first() -> None:
    samples = [1.0] * 100 + [5.0] * 800 + [1.25] * 100
    assert drift_with_interval(samples) == (0.25, (0.25, 0.25))


def test_drift_of_few_queries_has_no_interval_and_of_fewer_no_value() -> None:
    assert drift_with_interval([1.0] * 10 + [2.0] * 10) == (1.0, None)
    assert drift_with_interval([1.0] * 19) == (None, None)


def test_drift_interval_holds_the_true_drift_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    held = 0
    for trial in range(100):
        samples = rng.lognormal(0.0, 0.1, 1000)
        samples[-100:] *= 1.1
        _, interval = drift_with_interval(list(samples), seed=trial)
        assert interval is not None
        held += interval[0] <= 0.1 <= interval[1]
    # 95 % of 100: 88 or fewer would happen once in 200 tries; the bootstrap of a median is a little wide or narrow
    assert held >= 86


def test_a_device_that_says_it_is_held_back_makes_the_run_invalid() -> None:
    readings = [
        Reading(at_ms=-1.0, throttled=[]),
        Reading(at_ms=12_400.0, throttled=["under-voltage", "frequency capped"]),
        Reading(at_ms=20_000.0, throttled=[]),
    ]
    reason = invalid_reason(readings, cores=[], trip_c=80.0)
    assert reason is not None
    assert reason.startswith("the device was held back (under-voltage, frequency capped), first seen 12 s into the run")


@pytest.mark.parametrize(
    ("clocks", "hottest", "invalid"),
    [
        ([1500.0, 1190.0], 80.0, True),  # 0.793 of the start, at the trip point
        ([1500.0, 1210.0], 95.0, False),  # 0.807: hot, but not slowed
        ([1500.0, 600.0], 60.0, False),  # an idle clock at rest is no throttling
    ],
)
def test_a_fallen_clock_counts_only_together_with_heat(clocks: list[float], hottest: float, invalid: bool) -> None:
    readings = [
        Reading(at_ms=1000.0 * index, clocks_mhz=[clock], temperatures_c={"cpu": hottest, "board": 30.0})
        for index, clock in enumerate(clocks)
    ]
    reason = invalid_reason(readings, cores=[0], trip_c=80.0)
    assert (reason is not None) == invalid
    assert not invalid or "79% of its first value while the device was at 80 degrees" in str(reason)


def test_clock_is_that_of_the_cores_that_work() -> None:
    readings = [
        Reading(at_ms=0.0, clocks_mhz=[2000.0, 1000.0, 1000.0]),
        Reading(at_ms=1.0, clocks_mhz=[600.0, 900.0, 1000.0]),
    ]
    assert clock_ratio(readings, [1, 2]) == 0.95
    assert clock_ratio(readings, []) == 0.5  # without pinning, the fastest core is taken for the one that works
    assert clock_ratio([Reading(at_ms=0.0)], []) is None


def test_trip_point_is_the_devices_own_where_it_tells_one() -> None:
    assert trip_of({"trip_temperature_c": 60.0}) == 60.0
    assert trip_of({"trip_temperature_c": None}) == TRIP_C


def test_energy_is_a_counters_difference_per_inference() -> None:
    # 3 J from 0 s to 2 s are 1.5 W; 100 queries of 10 ms take 1 s: 15 mJ each
    readings = [Reading(at_ms=0.0, energy_j=10.0), Reading(at_ms=2000.0, energy_j=13.0)]
    row = energy_of(run([10.0] * 100, readings, source="RAPL"), "m", rung="r", target=None, device="d")
    assert (row.energy_mj, row.power_w, row.n, row.source) == (pytest.approx(15.0), 1.5, 100, "RAPL")


def test_energy_is_mean_power_times_time_without_a_counter() -> None:
    readings = [Reading(at_ms=0.0, power_w=2.0), Reading(at_ms=500.0, power_w=4.0)]
    row = energy_of(run([10.0] * 100, readings, source="tegrastats"), "m", rung="r", target=None, device="d")
    assert row.energy_mj == pytest.approx(30.0)  # 3 W x 1 s / 100


def test_energy_is_not_available_where_nothing_tells_or_the_counter_started_anew() -> None:
    anew = [Reading(at_ms=0.0, energy_j=13.0), Reading(at_ms=2000.0, energy_j=1.0)]
    for readings, source in ((anew, "RAPL"), ([Reading(at_ms=0.0)], None)):
        row = energy_of(run([10.0] * 100, readings, source=source), "m", rung="r", target=None, device="d")
        assert (row.energy_mj, row.power_w, row.source) == (None, None, "not available")


def test_sustained_row_keeps_every_stretch_and_every_throttled_reading() -> None:
    readings = [Reading(at_ms=10.0 * index, throttled=[]) for index in range(1000)]
    readings[501] = Reading(at_ms=5010.0, throttled=["throttled"])
    row = sustained_of(
        run([10.0] * 1000, readings), "m", rung="r", target="t", device="d", confidence=0.99, trip_c=80.0
    )
    assert row.seconds == pytest.approx(10.0)
    assert (row.n, row.p50_ms, row.drift) == (1000, 10.0, 0.0)
    assert len(row.points) == 120
    assert row.throttled == ["throttled"]
    assert row.invalid is not None
    assert any(one.throttled for one in row.readings)
    assert len(row.readings) <= 241
