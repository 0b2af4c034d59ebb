"""_repeats: mean, deviation and interval over seeds."""

from __future__ import annotations

import pytest

from edgekd._repeats import accuracies, repeats


def test_three_seeds_by_hand() -> None:
    # mean 0.92, sd 0.02, t = 4.3027 for two degrees of freedom: half = 4.3027 * 0.02 / sqrt(3)
    found = repeats([0.90, 0.92, 0.94])
    assert (found.n, found.mean, found.sd) == (3, pytest.approx(0.92), pytest.approx(0.02))
    assert found.ci95 == pytest.approx((0.92 - 0.049683, 0.92 + 0.049683), abs=1e-5)


def test_one_seed_has_no_spread_and_no_interval() -> None:
    found = repeats([0.9])
    assert (found.mean, found.sd, found.ci95, found.n) == (0.9, None, None, 1)
    assert accuracies([0.9]) == found


def test_equal_seeds_have_an_interval_of_no_width() -> None:
    assert repeats([0.5, 0.5]).ci95 == (0.5, 0.5)


def test_interval_shrinks_with_seeds_and_shifts_with_the_values() -> None:
    few, many = repeats([0.1, 0.3]), repeats([0.1, 0.3] * 4)
    assert few.ci95 is not None
    assert many.ci95 is not None
    assert few.ci95[0] < many.ci95[0] < many.mean < many.ci95[1] < few.ci95[1]
    moved = repeats([1.1, 1.3]).ci95
    assert moved == pytest.approx([bound + 1 for bound in few.ci95])


def test_interval_of_accuracies_ends_at_0_and_1() -> None:
    assert accuracies([0.9, 1.0]).ci95 == pytest.approx((0.95 - 0.6353, 1.0), abs=1e-3)
    assert accuracies([0.0, 0.1]).ci95 == pytest.approx((0.0, 0.6853), abs=1e-3)
