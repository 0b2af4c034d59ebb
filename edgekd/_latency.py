"""The latency of one model: its protocol, its summary with nothing dropped, and its lines in report.json."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgekd._statistics import (
    Ratio,
    Verdict,
    estimate,
    lower_bound,
    nearest_rank,
    passing_queries,
    supported_percentile,
    upper_bound,
    verdict,
)
from edgekd.errors import UsageError
from edgekd.spec import Frozen

__all__ = ["Int8VsFloatRow", "Latency", "LatencyRow", "Protocol", "int8_vs_float_row", "latency_of", "latency_row"]


@dataclass(frozen=True)
class Protocol:
    """How latency is measured and what it is held against.

    Args:
        budget_ms: the latency that the percentile must not exceed, > 0.
        percentile: the percentile the budget is about, in (0, 100).
        confidence: one-sided confidence of the verdict and of every percentile, in (0, 1).
        queries: timed runs of each model.
        max_seconds: stop timing after this long, with at least one run of each.
        warmup_min: fewest untimed runs of each model, at least twice `window`.
        warmup_max_seconds: end of the warm-up even if it is not steady.
        window: runs of a model whose median is compared with that of the window before.
        steady: largest relative difference of those two medians that counts as steady.
    """

    budget_ms: float = 500.0
    percentile: float = 90.0
    confidence: float = 0.99
    queries: int = 256
    max_seconds: float = 60.0
    warmup_min: int = 20
    warmup_max_seconds: float = 10.0
    window: int = 10
    steady: float = 0.02

    def __post_init__(self) -> None:
        if self.queries < 1 or self.window < 1 or self.warmup_min < 2 * self.window:
            raise UsageError(
                "queries and window must be at least 1 and warmup_min at least twice the window;"
                f" got queries={self.queries}, window={self.window}, warmup_min={self.warmup_min}."
            )
        if min(self.budget_ms, self.max_seconds, self.warmup_max_seconds, self.steady) <= 0:
            raise UsageError(
                "budget_ms, max_seconds, warmup_max_seconds and steady must be > 0; got"
                f" {self.budget_ms}, {self.max_seconds}, {self.warmup_max_seconds}, {self.steady}."
            )
        passing_queries(self.percentile, self.confidence, over=0)


class Latency(Frozen):
    """The steady-state latency of one model.

    Args:
        n: timed runs; all of them are in `samples_ms`.
        warmup: untimed runs before them.
        steady: whether the warm-up ended because the latency had settled, not because time was up.
        p50_ms: nearest-rank percentile, or None when n cannot support it; likewise p90, p95 and p99.
        percentile: the percentile of the verdict.
        percentile_ms: its nearest-rank value, or None.
        estimate_ms: its early-stopping estimate, which is not under the true value at `confidence`, or None.
        lower_ms: its one-sided lower confidence bound, or None.
        upper_ms: its one-sided upper confidence bound, or None.
        queries_needed: the fewest runs that could show a PASS at this percentile and confidence.
        drift: median of the last tenth over median of the first tenth, minus one; None under 20 runs.
        samples_ms: every sample, in the order measured.
        started_ms: when each sample began, since the first one.
    """

    n: int
    warmup: int
    steady: bool
    mean_ms: float
    std_ms: float
    min_ms: float
    max_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    percentile: float
    percentile_ms: float | None
    estimate_ms: float | None
    lower_ms: float | None
    upper_ms: float | None
    queries_needed: int
    drift: float | None
    budget_ms: float
    confidence: float
    verdict: Verdict
    provider_requested: str
    provider_used: str
    samples_ms: list[float]
    started_ms: list[float]

    @property
    def reason(self) -> str:
        """Why the verdict is what it is, in one sentence."""
        over = sum(sample > self.budget_ms for sample in self.samples_ms)
        bounds = f"{self.n} runs, {over} over {self.budget_ms:g} ms"
        sure = f"with {self.confidence * 100:g} % confidence"
        if self.verdict == "PASS":
            return f"{bounds}: {sure} p{self.percentile:g} is at most {self.upper_ms:.4g} ms."
        if self.verdict == "FAIL":
            return f"{bounds}: {sure} p{self.percentile:g} is at least {self.lower_ms:.4g} ms."
        if over == 0:
            return f"{bounds}: p{self.percentile:g} needs {self.queries_needed} runs. Raise bench.queries."
        needed = passing_queries(self.percentile, self.confidence, over=over)
        return f"{bounds}: that many over need {needed} runs to pass p{self.percentile:g}. Raise bench.queries."


class LatencyRow(Frozen):
    """One element of `latency` in report.json."""

    rung: str
    target: str
    device: str
    runtime: str
    provider_requested: str
    provider_used: str
    threads: int
    batch: int
    n: int
    mean_ms: float
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    cold_ms: float | None
    budget_ms: float
    percentile: float
    confidence: float
    verdict: Verdict


class Int8VsFloatRow(Frozen):
    """One element of `int8_vs_float` in report.json."""

    target: str
    device: str
    speedup: float
    ci95: list[float] | None
    slow_ops: list[str]


def latency_of(
    samples_ms: Sequence[float],
    *,
    protocol: Protocol,
    started_ms: Sequence[float] = (),
    warmup: int = 0,
    steady: bool = True,
    provider_requested: str = "",
    provider_used: str = "",
) -> Latency:
    """Summarise samples, in milliseconds and in the order measured; none is dropped.

    Raises:
        UsageError: no samples.
    """
    if not samples_ms:
        raise UsageError("a latency needs at least one sample, got none.")
    percentile, confidence = protocol.percentile, protocol.confidence
    return Latency(
        n=len(samples_ms),
        warmup=warmup,
        steady=steady,
        mean_ms=statistics.fmean(samples_ms),
        std_ms=statistics.stdev(samples_ms) if len(samples_ms) > 1 else 0.0,
        min_ms=min(samples_ms),
        max_ms=max(samples_ms),
        p50_ms=supported_percentile(samples_ms, 50, confidence),
        p90_ms=supported_percentile(samples_ms, 90, confidence),
        p95_ms=supported_percentile(samples_ms, 95, confidence),
        p99_ms=supported_percentile(samples_ms, 99, confidence),
        percentile=percentile,
        percentile_ms=supported_percentile(samples_ms, percentile, confidence),
        estimate_ms=estimate(samples_ms, percentile, confidence),
        lower_ms=lower_bound(samples_ms, percentile, confidence),
        upper_ms=upper_bound(samples_ms, percentile, confidence),
        queries_needed=passing_queries(percentile, confidence, over=0),
        drift=_drift(samples_ms),
        budget_ms=protocol.budget_ms,
        confidence=confidence,
        verdict=verdict(samples_ms, budget_ms=protocol.budget_ms, percentile=percentile, confidence=confidence),
        provider_requested=provider_requested,
        provider_used=provider_used,
        samples_ms=list(samples_ms),
        started_ms=list(started_ms),
    )


def latency_row(
    latency: Latency,
    *,
    rung: str,
    target: str,
    device: str,
    runtime: str,
    threads: int,
    batch: int,
    cold_ms: float | None = None,
) -> LatencyRow:
    """The line of report.json about one measured model."""
    taken = {name: getattr(latency, name) for name in LatencyRow.model_fields if name in Latency.model_fields}
    given = {"rung": rung, "target": target, "device": device, "runtime": runtime, "threads": threads, "batch": batch}
    return LatencyRow.model_validate({**taken, **given, "cold_ms": cold_ms})


def int8_vs_float_row(ratio: Ratio, *, target: str, device: str, slow_ops: Sequence[str]) -> Int8VsFloatRow:
    """The line of report.json that says whether int8 was worth it."""
    return Int8VsFloatRow(target=target, device=device, speedup=ratio.speedup, ci95=ratio.ci95, slow_ops=list(slow_ops))


def _drift(samples_ms: Sequence[float]) -> float | None:
    tenth = len(samples_ms) // 10
    if tenth < 2:
        return None
    return nearest_rank(samples_ms[-tenth:], 50) / nearest_rank(samples_ms[:tenth], 50) - 1
