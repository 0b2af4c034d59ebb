"""The records of report.json, schema version 1: fields are added, never renamed or removed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from edgekd._ladder import Interval95, Paired, Rung
from edgekd._quality_model import Distillation
from edgekd._report_device_model import (
    BaselineRow,
    ColdStartRow,
    DeviceRow,
    EndToEndRow,
    EnergyRow,
    GoldenRow,
    Outcome,
    PlacementRow,
    Record,
    Sustained,
    Worth,
)
from edgekd._report_file_model import Engine, Fusion, Mobile, Operator, ParityRow
from edgekd._sensitivity_model import MixedPrecision, Sensitivity

__all__ = [
    "Curve",
    "Int8VsFloat",
    "Latency",
    "Lineage",
    "Outcome",
    "Report",
    "Stage",
    "TrainingCost",
    "Verdict",
]


class Latency(Record):
    """Latency of one exported file on one device; a percentile that n cannot support is None.

    Args:
        rung, target, device, runtime: what ran, and where.
        provider_requested, provider_used: execution providers; a difference is a failure.
        threads, batch: of each query.
        n: timed queries, all kept.
        mean_ms, std_ms, min_ms, max_ms, p50_ms, p90_ms, p95_ms, p99_ms: of one query, steady state.
        cold_ms: loading the model and the first query, in a new process.
        first_ms: the first query after loading, part of `cold_ms`.
        lower_ms, upper_ms: bounds of the budget's percentile, each at `confidence`.
        warmup: queries before the timed ones.
        steady: the warm-up ended steady, and not because its time was up.
        drift: last tenth over first tenth of the queries, minus 1.
        budget_ms, percentile, confidence: what the verdict is about.
        verdict: None where no budget applies; INVALID where the device was held back meanwhile.
        reason: why the verdict is what it is.
        runtime_version: of the device's runtime; None where it is that of `environment`.
        cores: that the program was pinned to; empty where it was not.
        samples: key of its samples in `latency_samples`.
        is_latency: False for an emulated device, whose times say nothing about the processor that it stands for.
        sweep: measured to compare numbers of threads; no budget applies.
    """

    rung: str
    target: str | None = None
    device: str
    runtime: str
    provider_requested: str
    provider_used: str
    threads: int
    batch: int
    n: int
    mean_ms: float
    std_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    cold_ms: float | None = None
    first_ms: float | None = None
    lower_ms: float | None = None
    upper_ms: float | None = None
    warmup: int | None = None
    steady: bool | None = None
    drift: float | None = None
    budget_ms: float | None = None
    percentile: float | None = None
    confidence: float | None = None
    verdict: Outcome | None = None
    reason: str | None = None
    runtime_version: str | None = None
    cores: list[int] = Field(default_factory=list)
    samples: str | None = None
    is_latency: bool = True
    sweep: bool = False


class Int8VsFloat(Record):
    """Speed of int8 against float of the same model, interleaved.

    Args:
        speedup: float time / int8 time; above 1 int8 is faster.
        ci95: interval of that ratio; None where too few queries support one.
        slow_ops: operators of the int8 file that compute or convert in float, the slowest first.
    """

    target: str
    device: str
    speedup: float
    ci95: Interval95 | None = None
    slow_ops: list[str] = Field(default_factory=list)


class Curve(Record):
    """One epoch of one training stage.

    Args:
        epoch: 1 is the first.
        terms: each weighted term of the objective, and "total".
        val_accuracy: a fraction; None where it was not measured.
        lr: learning rate at the end of the epoch.
        seconds: length of this epoch.
        seed: tells repeats of a stage apart.
    """

    stage: str
    epoch: int
    terms: dict[str, float] = Field(default_factory=dict)
    val_accuracy: float | None = None
    lr: float | None = None
    seconds: float | None = None
    seed: int | None = None


class TrainingCost(Record):
    """What one training stage cost, and where the time of its steps went.

    Args:
        epochs, steps: of the whole training.
        seconds: of all epochs, validation included.
        timed_steps: whose time is known by part; fewer than `steps` if the training was broken off and went on.
        images_per_s: throughput of those steps, over all processes.
        step_ms: mean time of one of them.
        parts_ms: the same by part: data, transfer, cache, teacher, forward, backward, optimizer, other.
        peak_memory_mib: highest resident memory of the stage's main process; None where that is not known.
        gpu_memory_mib: highest memory that torch allocated on its GPU; None without one.
        resumed_step: step after which it went on from a checkpoint; None for one that ran through.
        compiled: the step ran compiled; None where the recipe did not ask for it.
        compile_reason: why, or why not.
    """

    stage: str
    epochs: int
    steps: int
    seconds: float
    timed_steps: int = 0
    images_per_s: float | None = None
    step_ms: float | None = None
    parts_ms: dict[str, float] = Field(default_factory=dict)
    peak_memory_mib: float | None = None
    gpu_memory_mib: float | None = None
    resumed_step: int | None = None
    compiled: bool | None = None
    compile_reason: str | None = None


class Lineage(Record):
    """One artifact: what it is, the hash of its content (id), of what was asked (key), and what it was made from."""

    stage: str
    kind: str
    id: str
    key: str
    parents: list[str] = Field(default_factory=list)
    path: str


class Stage(Record):
    """What a stage took when it was made; a cached one was already there.

    Args:
        peak_memory_mib, gpu_memory_mib: highest use of the main process; None where that is not known.
    """

    stage: str
    seconds: float
    cached: bool
    peak_memory_mib: float | None = None
    gpu_memory_mib: float | None = None


class Verdict(Record):
    """The answer to "may this ship?".

    Args:
        overall: of all gates together.
        reasons: one sentence each, for a person.
        rung, target, device: of the measurement that decided.
        budget_ms, percentile, confidence: what was asked.
        budget_is: what the budget is about, "inference" or "end_to_end"; None before that was asked.
        measured_ms: the value that was held against the budget.
    """

    overall: Outcome
    reasons: list[str] = Field(default_factory=list)
    rung: str | None = None
    target: str | None = None
    device: str | None = None
    budget_ms: float | None = None
    percentile: float | None = None
    confidence: float | None = None
    measured_ms: float | None = None
    budget_is: str | None = None


class Report(Record):
    """Everything one run found out; the contract of report.json.

    Args:
        schema_version: 1.
        name: of the run.
        created_utc: ISO 8601 time.
        edgekd_version: of the program that made it.
        recipe: resolved, with every default.
        distillation: how close the students came to the teacher, and their calibration; None before they are trained.
        latency_samples: every timed query in ms, in order; the key is the series' label ("onnx_int8", or
            "onnx_int8 tensorrt" where a rung exists for several targets).
        sensitivity: what int8 does to each layer, by target; with `quantize.max_drop`.
        mixed: which layers went back to float, by target, and every step of the search.
        training: what each training stage cost, and where the time of a step went.
        devices: those that something was measured on.
        cold, end_to_end, sustained, energy, placement, worth: what the models did there, beside their latency.
        golden: the golden vectors of the files, replayed.
        baseline: the latencies against those of an earlier report.
        environment: versions and the machine, free in depth.
        notes: what a reader must know before using a number.
    """

    schema_version: Literal[1] = 1
    name: str = "run"
    created_utc: str | None = None
    edgekd_version: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    verdict: Verdict | None = None
    ladder: list[Rung] = Field(default_factory=list)
    paired: list[Paired] = Field(default_factory=list)
    distillation: Distillation | None = None
    latency: list[Latency] = Field(default_factory=list)
    latency_samples: dict[str, list[float]] = Field(default_factory=dict)
    int8_vs_float: list[Int8VsFloat] = Field(default_factory=list)
    fusion: list[Fusion] = Field(default_factory=list)
    sensitivity: dict[str, Sensitivity] = Field(default_factory=dict)
    mixed: dict[str, MixedPrecision] = Field(default_factory=dict)
    parity: list[ParityRow] = Field(default_factory=list)
    engines: list[Engine] = Field(default_factory=list)
    mobile: list[Mobile] = Field(default_factory=list)
    operators: list[Operator] = Field(default_factory=list)
    curves: list[Curve] = Field(default_factory=list)
    training: list[TrainingCost] = Field(default_factory=list)
    lineage: list[Lineage] = Field(default_factory=list)
    stages: list[Stage] = Field(default_factory=list)
    devices: list[DeviceRow] = Field(default_factory=list)
    cold: list[ColdStartRow] = Field(default_factory=list)
    end_to_end: list[EndToEndRow] = Field(default_factory=list)
    sustained: list[Sustained] = Field(default_factory=list)
    energy: list[EnergyRow] = Field(default_factory=list)
    placement: list[PlacementRow] = Field(default_factory=list)
    worth: list[Worth] = Field(default_factory=list)
    golden: list[GoldenRow] = Field(default_factory=list)
    baseline: list[BaselineRow] = Field(default_factory=list)
    environment: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
