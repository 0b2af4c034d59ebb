"""Order statistics of latency samples: percentiles that the sample supports, verdicts, paired ratios.

Nothing is clipped: the tail is what a latency budget is about.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from scipy.special import bdtr

from edgekd.errors import UsageError
from edgekd.spec import Frozen

__all__ = [
    "Ratio",
    "Verdict",
    "allowed_over",
    "block_percentiles",
    "compare",
    "estimate",
    "lower_bound",
    "nearest_rank",
    "passing_queries",
    "supported_percentile",
    "upper_bound",
    "verdict",
]

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]

_MIN_PAIRS = 10
_RESAMPLES = 2000
_FEWEST_RESAMPLES = 200
_MOST_DRAWN = 40_000_000
_CHUNK_VALUES = 2**20


class Ratio(Frozen):
    """How many times faster b is than a.

    Args:
        speedup: > 1 when b is faster.
        ci95: 95 % interval of it, or None when fewer than 10 pairs were measured.
        n: pairs.
    """

    speedup: float
    ci95: list[float] | None
    n: int


def passing_queries(percentile: float, confidence: float, *, over: int) -> int:
    """Smallest n for which `over` queries over the latency still show the percentile to be under it.

    The number of queries over the true percentile is binomial(n, 1 - p); n passes when `over` or fewer of them
    would have probability at most 1 - confidence.

    Args:
        percentile: in (0, 100).
        confidence: in (0, 1).
        over: queries over the latency, >= 0.

    Reference: MLCommons, "MLPerf Inference Rules", early stopping criterion, with tolerance d = 0.

    >>> [passing_queries(90, 0.99, over=over) for over in (0, 1, 2)]
    [44, 64, 81]
    """
    p, _ = _checked(percentile, confidence)
    low, high = over, over + 1
    while not _passes(high, over, p, confidence):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _passes(middle, over, p, confidence) else (middle, high)
    return high


def allowed_over(n: int, percentile: float, confidence: float) -> int | None:
    """Largest number of over-latency queries that n queries allow; None when even none over proves nothing."""
    p, _ = _checked(percentile, confidence)
    if n < 1 or not _passes(n, 0, p, confidence):
        return None
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _passes(n, middle, p, confidence) else (low, middle)
    return low


def upper_bound(samples: Sequence[float], percentile: float, confidence: float) -> float | None:
    """One-sided upper confidence bound of a percentile: the (n - t)-th smallest sample.

    t is the largest over-latency count that n queries allow. None when there are too few samples for any bound.
    """
    over = allowed_over(len(samples), percentile, confidence)
    return None if over is None else float(np.sort(samples)[len(samples) - over - 1])


def lower_bound(samples: Sequence[float], percentile: float, confidence: float) -> float | None:
    """One-sided lower confidence bound of a percentile, or None when there are too few samples for one.

    It is the k-th smallest sample for the largest k such that k - 1 or fewer of n samples under the true
    percentile would have probability at most 1 - confidence.
    """
    p, _ = _checked(percentile, confidence)
    n = len(samples)
    # P(X <= k - 1) for X ~ binomial(n, p) grows with k, so the count of admissible k is the largest one
    k = int(np.count_nonzero(bdtr(np.arange(n), n, p) <= 1 - confidence)) if n else 0
    return float(np.sort(samples)[k - 1]) if k else None


def estimate(samples: Sequence[float], percentile: float, confidence: float) -> float | None:
    """The early-stopping estimate of a percentile, which is not under the true one with the given confidence.

    It is `upper_bound` with at least one sample above it, so that it never is the largest sample; None when
    n is under `passing_queries(..., over=1)`.
    """
    over = allowed_over(len(samples), percentile, confidence)
    return upper_bound(samples, percentile, confidence) if over else None


def nearest_rank(samples: Sequence[float], percentile: float) -> float:
    """The ceil(n * percentile / 100)-th smallest sample: always a value that was measured.

    >>> nearest_rank([15.0, 20.0, 35.0, 40.0, 50.0], 40)
    20.0
    """
    # one part in 10^12 keeps 0.9 * 10 from rounding up to rank 10
    rank = math.ceil(len(samples) * percentile / 100 * (1 - 1e-12))
    return float(np.sort(samples)[max(rank, 1) - 1])


def supported_percentile(samples: Sequence[float], percentile: float, confidence: float) -> float | None:
    """The nearest-rank percentile, or None when the sample is too small to tell it.

    At 99 % confidence p50 needs 11 samples, p90 64, p95 130 and p99 662.
    """
    return nearest_rank(samples, percentile) if allowed_over(len(samples), percentile, confidence) else None


def verdict(samples: Sequence[float], *, budget_ms: float, percentile: float, confidence: float) -> Verdict:
    """Whether a percentile of the latency is within the budget, as far as the sample shows.

    PASS when the upper confidence bound is at most the budget (44 of 44 under it pass p90 at 99 %), FAIL when the
    lower bound is over it, INCONCLUSIVE otherwise.
    """
    upper = upper_bound(samples, percentile, confidence)
    if upper is not None and upper <= budget_ms:
        return "PASS"
    lower = lower_bound(samples, percentile, confidence)
    return "FAIL" if lower is not None and lower > budget_ms else "INCONCLUSIVE"


def compare(a_samples: Sequence[float], b_samples: Sequence[float], *, seed: int = 0) -> Ratio:
    """How many times faster b is than a, from samples taken A B A B.

    The ratio of each neighbouring pair is formed first, so what slows both for a while (heat, another process)
    cancels; the speedup is the median ratio. The interval is a percentile bootstrap over blocks of about
    n^(1/3) neighbouring pairs, since pairs close in time are not independent.

    Args:
        a_samples: latencies of the reference, in the order measured, > 0.
        b_samples: latencies of the other, as many.
        seed: of the bootstrap.

    Raises:
        UsageError: no samples, or not as many of each.

    Reference: Kunsch, "The Jackknife and the Bootstrap for General Stationary Observations", Annals of Statistics
    17(3), 1989 (blocks); Politis and Romano, "A Circular Block-Resampling Procedure for Stationary Data", 1992.

    >>> compare([2.0, 4.0, 6.0], [1.0, 2.0, 2.0]).speedup
    2.0
    """
    n = len(a_samples)
    if n != len(b_samples) or n == 0:
        raise UsageError(f"compare takes as many samples of each, at least one; got {n} and {len(b_samples)}.")
    ratios = np.log(np.asarray(a_samples, dtype=np.float64)) - np.log(np.asarray(b_samples, dtype=np.float64))
    speedup = float(np.exp(np.median(ratios)))
    if n < _MIN_PAIRS:
        return Ratio(speedup=speedup, ci95=None, n=n)
    low, high = np.exp(np.quantile(_block_medians(ratios, seed), [0.025, 0.975]))
    return Ratio(speedup=speedup, ci95=[float(low), float(high)], n=n)


def block_percentiles(samples: Sequence[float], percentile: float, *, seed: int = 0) -> np.ndarray:
    """A percentile of each circular block-bootstrap resample: how much it would vary from run to run.

    Queries close in time are not independent, so blocks of about n^(1/3) neighbours are drawn. Of more than 20,000
    samples fewer resamples are drawn, 200 at least.

    Args:
        samples: in the order measured, at least one.
        percentile: in (0, 100).
        seed: of the bootstrap.

    Returns:
        Nearest-rank percentiles, one a resample; shape (2000,) for up to 20,000 samples.
    """
    values = np.asarray(samples, dtype=np.float64)
    resamples = min(_RESAMPLES, max(_FEWEST_RESAMPLES, _MOST_DRAWN // len(values)))
    return np.concatenate(
        [
            np.quantile(drawn, percentile / 100, axis=1, method="inverted_cdf")
            for drawn in _block_resamples(values, seed, resamples)
        ]
    )


def _block_medians(values: np.ndarray, seed: int) -> np.ndarray:
    """Median of each circular block-bootstrap resample; shape (_RESAMPLES,)."""
    return np.concatenate([np.median(drawn, axis=1) for drawn in _block_resamples(values, seed, _RESAMPLES)])


def _block_resamples(values: np.ndarray, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Resamples of circular blocks, some at a time; shape (rows, n)."""
    n = len(values)
    block = max(1, round(n ** (1 / 3)))
    rng = np.random.default_rng(seed)
    offsets = np.arange(block)
    chunk = max(1, _CHUNK_VALUES // n)  # all resamples of a long run at once would not fit a small machine
    for first in range(0, resamples, chunk):
        rows = min(chunk, resamples - first)
        starts = rng.integers(0, n, size=(rows, math.ceil(n / block)))
        positions = (starts[:, :, None] + offsets).reshape(rows, -1)[:, :n] % n
        yield values[positions]


def _passes(n: int, over: int, p: float, confidence: float) -> bool:
    return bool(bdtr(over, n, 1 - p) <= 1 - confidence)


def _checked(percentile: float, confidence: float) -> tuple[float, float]:
    if not 0 < percentile < 100:
        raise UsageError(f"percentile must be between 0 and 100, got {percentile}")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must be between 0 and 1, got {confidence}")
    return percentile / 100, confidence
