"""Latencies against those of an earlier report: a regression only where the whole interval says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgekd._report_device_model import BaselineRow, EndToEndRow, Outcome
from edgekd._report_model import Latency, Report
from edgekd._statistics import Ratio, block_percentiles, nearest_rank, passing_queries, supported_percentile
from edgekd.errors import UsageError

__all__ = ["against", "notes", "ratio_of_percentiles", "share_of"]

_INFERENCE, _END_TO_END = "inference", "end_to_end"
_PERCENTILE, _CONFIDENCE = 90.0, 0.99


@dataclass(frozen=True)
class _Series:
    """The samples of one row, and what makes it the same as a row of another report."""

    key: tuple[str, str | None, str, str, int | None, int | None]
    percentile: float
    confidence: float
    samples: list[float]
    sweep: bool = False

    @property
    def label(self) -> str:
        rung, target, device, what, threads, batch = self.key
        parts = [rung, target or "", f"on {device}", "" if what == _INFERENCE else "end to end"]
        if threads is not None and batch is not None:
            parts.append(f"with {threads} thread{'s' if threads > 1 else ''} at batch {batch}")
        return " ".join(part for part in parts if part)


def share_of(text: str) -> float:
    """A share that a user wrote, as a fraction.

    Raises:
        UsageError: not a number, or under 0.

    >>> share_of("5%"), share_of("0.05")
    (0.05, 0.05)
    """
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"--max-regression must be a share such as 5% or 0.05, got '{text}'.")
    return value


def against(report: Report, baseline: Report, *, max_regression: float) -> list[BaselineRow]:
    """Compare every latency that both reports have, at the median and at the budget's percentile.

    The runs were not made in turns, so their samples are resampled apart. What differs from run to run, another clock
    or another neighbour, is in no sample: `max_regression` must leave room for it.

    Args:
        report: the new one.
        baseline: the earlier one.
        max_regression: largest allowed ratio minus 1, >= 0.
    """
    after = {series.key: series for series in _all_series(report)}
    before = {series.key: series for series in _all_series(baseline)}
    rows = [
        _row(series, before[key].samples, percentile, max_regression)
        for key, series in after.items()
        if key in before
        for percentile in dict.fromkeys((50.0, series.percentile))
    ]
    lost = [_missing(one, max_regression) for key, one in before.items() if key not in after and not one.sweep]
    if not rows and not lost:
        lost = [_nothing(report, max_regression)]
    return rows + lost


def notes(report: Report, baseline: Report) -> list[str]:
    """What a reader of the comparison must know: what is new, and what else differs."""
    before = {series.key for series in _all_series(baseline)}
    new = [series.label for series in _all_series(report) if series.key not in before]
    lines = [f"Not in the baseline: {', '.join(new)}."] if new and before else []
    ours = {series.key for series in _all_series(report)}
    if lost := [series.label for series in _all_series(baseline) if series.sweep and series.key not in ours]:
        lines.append(f"In the baseline, not measured now: {', '.join(lost)}.")
    for what, now, then in _surroundings(report, baseline):
        lines.append(f"The baseline was measured with another {what}: {then}, now {now}.")
    return lines


def ratio_of_percentiles(after: list[float], before: list[float], percentile: float, *, seed: int = 0) -> Ratio:
    """How many times slower `after` is than `before` at a percentile, with the interval of a block bootstrap.

    >>> ratio_of_percentiles([2.0] * 20, [1.0] * 20, 50).speedup
    2.0
    """
    drawn = block_percentiles(after, percentile, seed=seed)
    reference = block_percentiles(before, percentile, seed=seed + 1)
    n = min(len(drawn), len(reference))
    low, high = np.quantile(drawn[:n] / reference[:n], [0.025, 0.975])
    ratio = nearest_rank(after, percentile) / nearest_rank(before, percentile)
    return Ratio(speedup=ratio, ci95=[float(low), float(high)], n=min(len(after), len(before)))


def _all_series(report: Report) -> Iterator[_Series]:
    for row in report.latency:
        yield from _series(report, row, _INFERENCE, row.threads, row.batch)
    for whole in report.end_to_end:
        yield from _series(report, whole, _END_TO_END, None, None)


def _series(
    report: Report, row: Latency | EndToEndRow, what: str, threads: int | None, batch: int | None
) -> Iterator[_Series]:
    # the keys that reports had before a row named its own
    names = [row.samples] if row.samples else [f"{row.rung} {row.target}", row.rung]
    samples = next((report.latency_samples[name] for name in names if report.latency_samples.get(name)), None)
    if samples and row.is_latency:
        key = (row.rung, row.target, row.device, what, threads, batch)
        sweep = isinstance(row, Latency) and row.sweep
        yield _Series(key, row.percentile or _PERCENTILE, row.confidence or _CONFIDENCE, samples, sweep)


def _row(series: _Series, before: list[float], percentile: float, allowed: float) -> BaselineRow:
    after = series.samples
    values = [supported_percentile(one, percentile, series.confidence) for one in (before, after)]
    if None in values:
        needed = passing_queries(percentile, series.confidence, over=1)
        reason = f"{series.label}: p{percentile:g} needs {needed} queries, there are {len(before)} and {len(after)}."
        return _baseline_row(series, allowed, "INCONCLUSIVE", reason, percentile=percentile, values=values)
    ratio = ratio_of_percentiles(after, before, percentile)
    low, high = ratio.ci95 or [ratio.speedup, ratio.speedup]
    verdict: Outcome = "FAIL" if low - 1 > allowed else "PASS" if high - 1 <= allowed else "INCONCLUSIVE"
    told = (
        f"{series.label}: p{percentile:g} {values[0]:.4g} to {values[1]:.4g} ms, {ratio.speedup - 1:+.1%}"
        f" (95 %: {low - 1:+.1%} to {high - 1:+.1%}), at most {allowed:+.1%} is allowed."
    )
    more = " Raise bench.queries, or allow more." if verdict == "INCONCLUSIVE" else ""
    return _baseline_row(
        series,
        allowed,
        verdict,
        told + more,
        percentile=percentile,
        values=values,
        ratio=ratio.speedup,
        ci95=(low, high),
    )


def _missing(series: _Series, allowed: float) -> BaselineRow:
    reason = f"{series.label}: is in the baseline and was not measured now. Measure it, or make a new baseline."
    return _baseline_row(series, allowed, "INCONCLUSIVE", reason)


def _nothing(report: Report, allowed: float) -> BaselineRow:
    row = report.latency[0] if report.latency else None
    return BaselineRow(
        rung=row.rung if row else "none",
        target=row.target if row else None,
        device=row.device if row else "none",
        max_regression=allowed,
        verdict="INCONCLUSIVE",
        reason="Neither the report nor the baseline has a latency with its samples, so nothing was compared.",
    )


def _baseline_row(
    series: _Series,
    allowed: float,
    verdict: Outcome,
    reason: str,
    *,
    percentile: float | None = None,
    values: list[float | None] | None = None,
    ratio: float | None = None,
    ci95: tuple[float, float] | None = None,
) -> BaselineRow:
    rung, target, device, what, threads, batch = series.key
    before, after = values or (None, None)
    return BaselineRow(
        rung=rung,
        target=target,
        device=device,
        what=what,
        threads=threads,
        batch=batch,
        percentile=percentile,
        before_ms=before,
        after_ms=after,
        ratio=ratio,
        ci95=ci95,
        max_regression=allowed,
        verdict=verdict,
        reason=reason,
    )


def _surroundings(report: Report, baseline: Report) -> Iterator[tuple[str, str, str]]:
    """What of runtime and machine differs: its name, its value now, and then."""
    known = {row.device: row for row in baseline.devices}
    for row in report.devices:
        if (then := known.get(row.device)) is None:
            continue
        pairs = {
            f"{row.runtime} on {row.device}": (row.runtime_version, then.runtime_version),
            f"machine on {row.device}": (row.machine, then.machine),
            f"processor on {row.device}": (row.details.get("model"), then.details.get("model")),
        }
        yield from ((what, str(now), str(old)) for what, (now, old) in pairs.items() if now != old)
    ours, theirs = (one.environment.get("packages", {}).get("onnxruntime") for one in (report, baseline))
    if not report.devices and ours and theirs and ours != theirs:
        yield "onnxruntime", str(ours), str(theirs)
