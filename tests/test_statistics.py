"""Percentiles, bounds, verdicts and ratios: the published table, hand-worked samples, coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekd._statistics import (
    allowed_over,
    compare,
    estimate,
    lower_bound,
    nearest_rank,
    passing_queries,
    supported_percentile,
    upper_bound,
    verdict,
)
from edgekd.errors import UsageError

CONFIDENCE = 0.99
TABLE = [
    (50, [7, 11, 14, 22, 35]),
    (90, [44, 64, 81, 127, 197]),
    (95, [90, 130, 165, 259, 398]),
    (99, [459, 662, 838, 1307, 2010]),
    (99.9, [4603, 6636, 8403, 13105, 20140]),
]


@pytest.mark.parametrize(("percentile", "queries"), TABLE)
def test_passing_queries_are_the_published_ones_when_confidence_is_99(percentile: float, queries: list[int]) -> None:
    assert [passing_queries(percentile, CONFIDENCE, over=over) for over in (0, 1, 2, 5, 10)] == queries


def test_passing_queries_follow_the_closed_form_when_none_is_over() -> None:
    # p^n <= 1 - c
    for percentile, confidence in ((90, 0.95), (80, 0.9), (99, 0.999)):
        expected = math.ceil(math.log(1 - confidence) / math.log(percentile / 100))
        assert passing_queries(percentile, confidence, over=0) == expected


@pytest.mark.parametrize("percentile", [50, 90, 99])
def test_allowed_over_inverts_passing_queries(percentile: float) -> None:
    for over in (0, 1, 2, 7):
        n = passing_queries(percentile, CONFIDENCE, over=over)
        assert allowed_over(n, percentile, CONFIDENCE) == over
        assert allowed_over(n - 1, percentile, CONFIDENCE) == (over - 1 if over else None)


def test_nearest_rank_is_a_sample_when_worked_by_hand() -> None:
    samples = [50.0, 15.0, 40.0, 20.0, 35.0]
    assert [nearest_rank(samples, percentile) for percentile in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]
    # ceil(0.9 * 10) is 9, though 0.9 * 10 may round above it
    assert nearest_rank(list(range(1, 11)), 90) == 9


@pytest.mark.parametrize(("percentile", "needed"), [(50, 11), (90, 64), (95, 130), (99, 662)])
def test_percentile_is_none_when_the_sample_cannot_support_it(percentile: float, needed: int) -> None:
    samples = [float(value) for value in range(needed)]
    assert supported_percentile(samples[:-1], percentile, CONFIDENCE) is None
    assert estimate(samples[:-1], percentile, CONFIDENCE) is None
    assert supported_percentile(samples, percentile, CONFIDENCE) == nearest_rank(samples, percentile)
    assert estimate(samples, percentile, CONFIDENCE) == samples[-2]  # one sample is allowed above it


def test_estimate_is_the_order_statistic_below_the_allowed_ones() -> None:
    samples = list(np.random.default_rng(0).permutation(np.arange(1.0, 198.0)))
    assert estimate(samples, 90, CONFIDENCE) == 187  # 197 queries allow 10 over


@pytest.mark.parametrize("percentile", [5, 50, 90])
def test_bounds_mirror_each_other_when_the_sample_is_negated(percentile: float) -> None:
    samples = np.random.default_rng(2).standard_normal(150)
    upper = upper_bound(list(-samples), 100 - percentile, CONFIDENCE)
    lower = lower_bound(list(samples), percentile, CONFIDENCE)
    assert lower == (None if upper is None else -upper)


def test_upper_bound_is_over_the_true_percentile_with_the_stated_confidence() -> None:
    rng = np.random.default_rng(0)
    truth = -math.log(0.1)  # p90 of the unit exponential
    draws = rng.exponential(size=(600, 100))
    over = np.mean([(upper_bound(row, 90, 0.95) or 0.0) >= truth for row in draws])
    under = np.mean([(lower_bound(row, 90, 0.95) or np.inf) <= truth for row in draws])
    # exact levels are at least 0.95; three standard errors of 600 draws are 0.027
    assert over >= 0.923
    assert under >= 0.923
    # and not needlessly wide: the next order statistic would be below 0.95
    assert over <= 0.995
    assert under <= 0.995


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([400.0] * 44, "PASS"),
        ([400.0] * 43, "INCONCLUSIVE"),
        ([400.0] * 63 + [600.0], "PASS"),
        ([400.0] * 62 + [600.0], "INCONCLUSIVE"),
        ([600.0] * 2, "FAIL"),
        ([600.0], "INCONCLUSIVE"),
        ([400.0] * 50 + [600.0] * 50, "FAIL"),
        ([500.0] * 44, "PASS"),
    ],
    ids=["44-under", "43-under", "64-one-over", "63-one-over", "2-over", "1-over", "half-over", "at-budget"],
)
def test_verdict_at_p90(samples: list[float], expected: str) -> None:
    assert verdict(samples, budget_ms=500.0, percentile=90, confidence=CONFIDENCE) == expected


def test_verdict_never_loosens_when_the_budget_grows() -> None:
    samples = list(np.random.default_rng(1).gamma(4.0, size=150))
    order = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
    seen = [
        order[verdict(samples, budget_ms=budget, percentile=90, confidence=CONFIDENCE)]
        for budget in np.linspace(0.1, 20, 100)
    ]
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2}


def test_speedup_is_the_median_of_paired_ratios_when_worked_by_hand() -> None:
    ratio = compare([2.0, 4.0, 6.0], [1.0, 2.0, 2.0])
    assert ratio.speedup == pytest.approx(2.0)
    assert ratio.ci95 is None  # three pairs carry no interval


def test_speedup_is_exact_when_both_slow_down_together() -> None:
    drift = np.linspace(1.0, 3.0, 50)
    ratio = compare(list(6 * drift), list(2 * drift))
    assert ratio.speedup == pytest.approx(3.0)
    assert ratio.ci95 == pytest.approx([3.0, 3.0])


def test_interval_has_the_truth_when_samples_are_noisy() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for seed in range(40):
        a, b = 4 * rng.lognormal(0, 0.1, 64), 2 * rng.lognormal(0, 0.1, 64)
        low, high = compare(list(a), list(b), seed=seed).ci95 or [0.0, 0.0]
        hits += low <= 2.0 <= high
        assert high - low < 0.3
    assert hits >= 34  # 38 expected; 34 or fewer has probability under 0.04


def test_speedup_inverts_when_the_two_change_places() -> None:
    rng = np.random.default_rng(4)
    a, b = list(rng.lognormal(1, 0.2, 101)), list(rng.lognormal(0, 0.2, 101))
    assert compare(a, b).speedup * compare(b, a).speedup == pytest.approx(1.0)


def test_compare_is_repeatable_when_the_seed_is_the_same() -> None:
    a, b = list(np.linspace(2, 3, 30)), list(np.linspace(1, 2, 30))
    assert compare(a, b, seed=5) == compare(a, b, seed=5)


def test_arguments_are_refused_when_out_of_range() -> None:
    with pytest.raises(UsageError, match="percentile must be between 0 and 100, got 100"):
        passing_queries(100, CONFIDENCE, over=0)
    with pytest.raises(UsageError, match=r"confidence must be between 0 and 1, got 1"):
        passing_queries(90, 1.0, over=0)
    with pytest.raises(UsageError, match="got 2 and 1"):
        compare([1.0, 2.0], [1.0])
    with pytest.raises(UsageError, match="got 0 and 0"):
        compare([], [])
