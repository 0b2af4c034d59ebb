"""The records of report.json about devices: what they are, and what a model did there beside its latency."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from edgekd._ladder import Interval95
from edgekd.spec import Frozen

__all__ = [
    "BaselineRow",
    "ColdStartRow",
    "CostlyOperator",
    "DeviceRow",
    "EndToEndRow",
    "EnergyRow",
    "GoldenRow",
    "MovedNode",
    "Outcome",
    "PlacementRow",
    "Record",
    "Sustained",
    "SustainedPoint",
    "SustainedReading",
    "Worth",
]

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]
"""INVALID: the device was held back while it was measured, so that the numbers are not its own."""


class Record(Frozen):
    """A record of report.json: JSON has no NaN or infinity, so a number is a number, and "not known" is null."""

    model_config = ConfigDict(allow_inf_nan=False)


class DeviceRow(Record):
    """A device that something was measured on.

    Args:
        device: as the user wrote it, "ssh:pi@raspberrypi".
        machine, system, python, runtime, runtime_version: of the device.
        providers: execution providers that its runtime lists.
        cores: that the program may use.
        memory_bytes, free_bytes: of the device, and of the disk that the files went to.
        emulated: its times say nothing about the processor that it stands for.
        details: what else it tells: processor, board, clocks, governor, power mode.
    """

    device: str
    machine: str
    system: str
    python: str | None = None
    runtime: str
    runtime_version: str
    providers: list[str] = Field(default_factory=list)
    cores: int | None = None
    memory_bytes: int | None = None
    free_bytes: int | None = None
    emulated: bool = False
    details: dict[str, Any] = Field(default_factory=dict)


class ColdStartRow(Record):
    """What the first answer of a new process costs; medians over the repeats.

    Args:
        process_ms: from the start of the process until the runtime is imported; None where it was not told.
        load_ms, first_ms: preparing the model, and the first query.
        total_ms: median of the sums.
        peak_memory_mib, baseline_memory_mib: largest resident size, and the same before the model was loaded.
        model_memory_mib: median of the differences, what the model itself needs.
        repeats: new processes.
    """

    rung: str
    target: str | None = None
    device: str
    process_ms: float | None = None
    load_ms: float
    first_ms: float
    total_ms: float
    peak_memory_mib: float
    baseline_memory_mib: float
    model_memory_mib: float
    repeats: int
    is_latency: bool = True


class EndToEndRow(Record):
    """From an image in memory to sorted labels; medians of the parts, percentiles of the whole.

    Args:
        n: timed queries.
        preprocess_p50_ms, inference_p50_ms, postprocess_p50_ms: of the parts; copies to and from a device with memory
            of its own are part of the inference.
        p50_ms, p90_ms, p99_ms: of the whole; None where n cannot support them.
        budget_ms, percentile, confidence, verdict, reason: None where the budget is about the inference alone.
        samples: key of the whole's samples in `latency_samples`.
    """

    rung: str
    target: str | None = None
    device: str
    n: int
    preprocess_p50_ms: float
    inference_p50_ms: float
    postprocess_p50_ms: float
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    lower_ms: float | None = None
    upper_ms: float | None = None
    budget_ms: float | None = None
    percentile: float | None = None
    confidence: float | None = None
    verdict: Outcome | None = None
    reason: str | None = None
    samples: str | None = None
    is_latency: bool = True


class SustainedPoint(Record):
    """A stretch of a sustained run: its middle, and the median and the slowest query in it."""

    at_s: float
    p50_ms: float
    max_ms: float


class SustainedReading(Record):
    """The device's state at one moment of a sustained run; None for what it does not tell."""

    at_s: float
    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: list[str] = Field(default_factory=list)


class Sustained(Record):
    """One model running without a pause.

    Args:
        seconds: from the first query to the end of the last.
        n: queries.
        p50_ms, p90_ms: of all.
        drift: median of the last tenth over that of the first, minus 1; None under 20 queries.
        drift_ci95: its 95 % interval, from a bootstrap over blocks of queries.
        min_clock_ratio: lowest clock over the first one; None where the device does not tell its clocks.
        max_temperature_c: highest of all zones.
        trip_temperature_c: above which a fallen clock means that heat held the device back.
        throttled: what held it back, in the device's words.
        invalid: why the run does not count; None where it does.
        points, readings: for the chart.
    """

    rung: str
    target: str | None = None
    device: str
    seconds: float
    n: int
    p50_ms: float | None = None
    p90_ms: float | None = None
    drift: float | None = None
    drift_ci95: Interval95 | None = None
    min_clock_ratio: float | None = None
    max_temperature_c: float | None = None
    trip_temperature_c: float | None = None
    throttled: list[str] = Field(default_factory=list)
    invalid: str | None = None
    points: list[SustainedPoint] = Field(default_factory=list)
    readings: list[SustainedReading] = Field(default_factory=list)
    is_latency: bool = True


class EnergyRow(Record):
    """Energy of one inference.

    Args:
        energy_mj: in millijoules, with what the device draws anyway; None where it cannot be read.
        power_w: mean over the time.
        n: inferences in it.
        source: where the number comes from; "not available" without one.
    """

    rung: str
    target: str | None = None
    device: str
    energy_mj: float | None = None
    power_w: float | None = None
    n: int = 0
    source: str = "not available"


class MovedNode(Record):
    """A node that did not run as it was meant to.

    Args:
        name, op: of the node.
        provider: what ran it.
        share: of the time of all nodes, a fraction.
    """

    name: str
    op: str
    provider: str
    share: float


class PlacementRow(Record):
    """Which provider ran the nodes of a model.

    Args:
        provider_requested: every node was to run there.
        nodes: how many nodes each provider ran.
        shares: share of the time of each, fractions.
        partitions: maximal runs of nodes on one provider; 1 where everything ran on one.
        fallback: nodes that ran elsewhere.
        float_islands: nodes that the file has as int8 and that computed on floats.
        allowed: both are allowed.
        passed: nothing of this stops the gate.
        reason: why, in a sentence.
    """

    rung: str
    target: str | None = None
    device: str
    provider_requested: str
    nodes: dict[str, int]
    shares: dict[str, float]
    partitions: int
    fallback: list[MovedNode] = Field(default_factory=list)
    float_islands: list[MovedNode] = Field(default_factory=list)
    allowed: bool = False
    passed: bool
    reason: str


class CostlyOperator(Record):
    """An operator of the int8 file that costs what int8 was to win.

    Args:
        mean_us, share: of it in the int8 file; share of the time of all nodes there, a fraction.
        float_us: of the same node in the float32 file; None where that has no such node.
        why: "computes in float", "converts", or "slower than in float32".
    """

    name: str
    op: str
    mean_us: float
    share: float
    float_us: float | None = None
    why: str


class Worth(Record):
    """Whether int8 was worth it on a device.

    Args:
        float32_speedup, float16_speedup: float time over int8 time; above 1 int8 is faster. None if not measured.
        float32_ci95, float16_ci95: intervals of those ratios; None where too few queries support one.
        worth: False where float32 or float16 is faster beyond doubt, None where the intervals hold 1.
        sentence: the answer in words.
        operators: what it cost, the most expensive first.
    """

    target: str | None = None
    device: str
    float32_speedup: float | None = None
    float32_ci95: Interval95 | None = None
    float16_speedup: float | None = None
    float16_ci95: Interval95 | None = None
    worth: bool | None = None
    sentence: str
    operators: list[CostlyOperator] = Field(default_factory=list)


class BaselineRow(Record):
    """A latency against that of an earlier report.

    Args:
        what: "inference" or "end_to_end".
        threads, batch: of both.
        percentile: that is compared.
        before_ms, after_ms: its value in both; None where the sample cannot support it or one is missing.
        ratio: after over before; above 1 it is slower now.
        ci95: 95 % interval, from a bootstrap over blocks of queries of either report.
        max_regression: the largest ratio minus 1 that is allowed.
        verdict: FAIL only where the whole interval is beyond what is allowed, INCONCLUSIVE where it is partly.
        reason: why, in a sentence.
    """

    rung: str
    target: str | None = None
    device: str
    what: str = "inference"
    threads: int | None = None
    batch: int | None = None
    percentile: float | None = None
    before_ms: float | None = None
    after_ms: float | None = None
    ratio: float | None = None
    ci95: Interval95 | None = None
    max_regression: float
    verdict: Outcome
    reason: str


class GoldenRow(Record):
    """The golden vectors of a file, replayed.

    Args:
        file: the model's.
        samples: inputs.
        max_abs_error: over all outputs; None where the shapes differ.
        passed: every output is within its tolerance.
        reason: in a sentence.
    """

    file: str
    rung: str | None = None
    target: str | None = None
    device: str
    samples: int
    max_abs_error: float | None = None
    passed: bool
    reason: str
