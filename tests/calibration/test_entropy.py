"""The entropy calibrator: its divergence against plain loops, and what it clips and what it leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekd.calibration._base import Grid
from edgekd.calibration._divergence import Evidence, _without_atoms
from edgekd.calibration._histogram import BINS, Histogram
from edgekd.calibration.entropy import Entropy
from edgekd.spec import Options

UNSIGNED = Grid(0, 255, symmetric=False)
SIGNED = Grid(-128, 127, symmetric=False)
SYMMETRIC = Grid(-128, 127, symmetric=True)


def entropy(values: Tensor, grid: Grid = UNSIGNED) -> tuple[float, float]:
    return Entropy(Options()).range(seen(values), grid)


def seen(values: Tensor) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def heavy(count: int, seed: int = 0) -> Tensor:
    """Student's t with 3 degrees of freedom: a normal centre and a long tail."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(3, count, generator=generator).square().mean(dim=0).sqrt()
    return torch.randn(count, generator=generator) / wide


def uniform(upto: float, each: int = 500) -> Histogram:
    """`each` values in the middle of every bin of (0, upto], limit 1."""
    middles = (torch.arange(BINS // 2) + 0.5) / (BINS // 2)
    return seen(torch.cat([middles[middles < upto].repeat(each), torch.tensor([1.0])]))


def by_hand(histogram: Histogram, low: float, high: float, grid: Grid) -> float:
    """The formula of `Evidence.divergences` without its correction, bin by bin and code by code."""
    counts = histogram.counts.tolist()
    smooth = _without_atoms(histogram.counts.numpy().astype(np.float64)).tolist()
    scale, zero_point = (float(one) for one in grid.parameters(torch.tensor(low).double(), torch.tensor(high).double()))
    inside: dict[int, list[float]] = {code: [] for code in range(grid.low, grid.high + 1)}
    left = right = 0.0
    for centre, count, shaped in zip(histogram.centres().tolist(), counts, smooth, strict=True):
        code = math.floor(centre / scale + zero_point + 0.5)
        if code < grid.low:
            left += count
        elif code > grid.high:
            right += count
        elif shaped:
            inside[code].append(shaped)
    total = sum(counts)
    found: float = total * math.log((total - left - right) / total)
    masses = [sum(ones) for ones in inside.values()]
    for clipped, outer in ((left, masses[:8]), (right, masses[-8:])):
        own = max(sum(outer) / 8, 0.5)
        found += (own + clipped) * math.log((own + clipped) / own)
    for ones, mass in zip(inside.values(), masses, strict=True):
        found += sum(one * math.log(one / (mass / len(ones))) for one in ones)
    return found / total


@pytest.mark.parametrize("grid", [UNSIGNED, SIGNED, SYMMETRIC])
@pytest.mark.parametrize("kind", ["normal", "relu", "heavy"])
def test_divergence_equals_plain_loops_apart_from_the_correction(grid: Grid, kind: str) -> None:
    values = {"normal": normal(400_000), "relu": normal(400_000).relu(), "heavy": heavy(400_000).clamp(-30, 30)}[kind]
    histogram = seen(values)
    low = np.array([1.0, 0.7, 0.4]) * min(histogram.minimum, 0.0)
    high = np.array([1.0, 0.6, 0.3]) * histogram.maximum
    found = Evidence(histogram).divergences(low, high, grid)
    for index in range(3):
        wanted = by_hand(histogram, float(low[index]), float(high[index]), grid)
        # a chi-square has the mean of its degrees of freedom
        correction = 0.5 * float(found.freedom[index]) / found.total
        assert float(found.values[index]) == pytest.approx(wanted - correction, rel=1e-3, abs=1e-6)


def test_divergence_is_that_worked_by_hand_when_half_of_a_uniform_tensor_is_clipped() -> None:
    # (0, 1] evenly filled. Of codes over [0, 1/2], 510 would fill [0, 1], so an outer one has N / 510 of its own, and
    # N / 2 clipped: KL = (1 / 510 + 1 / 2) log(1 + 255) + log(1 / 2) = 2.090; nothing is lost inside the codes
    found = Evidence(uniform(1.0)).divergences(np.array([0.0, 0.0]), np.array([1.0, 0.5]), UNSIGNED)
    assert float(found.values[0]) == pytest.approx(0.0, abs=0.002)
    assert float(found.values[1]) == pytest.approx(2.090, abs=0.01)


@pytest.mark.parametrize("grid", [UNSIGNED, SYMMETRIC])
def test_nothing_is_clipped_when_the_tensor_is_uniform(grid: Grid) -> None:
    assert entropy(torch.linspace(0.0, 1.0, 300_000), grid) == (0.0, 1.0)


@pytest.mark.parametrize("grid", [UNSIGNED, SYMMETRIC])
@pytest.mark.parametrize("count", [20, 100, 500, 5_000])
def test_scatter_of_few_values_is_not_taken_for_lost_shape(count: int, grid: Grid) -> None:
    for seed in range(8):
        values = normal(count, seed)
        low, high = entropy(values, grid)
        # uncorrected, the narrowest range that is tried would win: a quarter
        assert high >= 0.75 * float(values.max())
        assert low <= 0.75 * float(values.min())


def test_widest_range_is_taken_of_those_that_scatter_cannot_tell_apart() -> None:
    kept = [entropy(values)[1] / float(values.max()) for values in (normal(3_000, seed).abs() for seed in range(12))]
    # the one with the least divergence would keep 95 % of the extreme on the average
    assert sum(kept) / 12 > 0.97


@pytest.mark.parametrize("grid", [UNSIGNED, SYMMETRIC])
def test_long_tails_are_clipped_and_normal_ones_are_not(grid: Grid) -> None:
    tailed, plain = heavy(1_000_000), normal(1_000_000)
    low, high = entropy(tailed, grid)
    assert 10.0 < high < 0.6 * float(tailed.max())
    assert 10.0 < -low < 0.6 * -float(tailed.min())
    assert entropy(plain, grid)[1] > 4.0


def test_lonely_outlier_is_clipped_and_the_other_end_is_left() -> None:
    values = torch.cat([normal(200_000), torch.tensor([30.0])])
    low, high = entropy(values)
    assert high < 12.0
    assert low < -4.0


def test_ends_of_an_asymmetric_grid_are_sought_apart() -> None:
    # SiLU: a dense short side down to -0.278 and a long thin one
    values = torch.nn.functional.silu(3 * heavy(500_000))
    low, high = entropy(values)
    assert low == float(values.min())
    assert high < 0.5 * float(values.max())


def test_ceiling_of_a_relu6_is_kept_whatever_lies_on_it() -> None:
    values = (3 * normal(400_000)).clamp(0, 6)
    assert entropy(values) == (0.0, 6.0)
    # a few on the ceiling of a tensor that is small elsewhere: 30 in 400 000
    rare = torch.cat([normal(400_000).abs(), torch.full((30,), 6.0)])
    assert entropy(rare)[1] <= 6.0


def test_zeros_behind_a_relu_change_nothing() -> None:
    values = heavy(200_000).abs()
    more = torch.cat([values, torch.zeros(1_000_000)])
    assert entropy(more)[1] == pytest.approx(entropy(values)[1], rel=0.05)


def test_repeated_values_are_no_shape_to_be_lost() -> None:
    # every hundredth bin holds a thousand times what the others do, as padding makes of a convolution's bias
    middles = (torch.arange(BINS // 2) + 0.5) / (BINS // 2)
    values = torch.cat([middles.repeat(200), middles[::100].repeat(50_000)])
    assert entropy(values)[1] == pytest.approx(1.0, abs=1e-3)


def test_both_thresholds_are_one_when_the_grid_is_symmetric() -> None:
    low, high = entropy(heavy(1_000_000), SYMMETRIC)
    assert low == -high


def test_extremes_are_taken_when_codes_are_as_narrow_as_bins() -> None:
    values = heavy(100_000)
    assert entropy(values, Grid(0, 65535, symmetric=False)) == (float(values.min()), float(values.max()))


def test_correction_makes_few_and_many_counts_agree_when_nothing_is_lost() -> None:
    # within an evenly filled code the plain divergence of scattered counts is about (b - 1) / 2 N for each code
    generator = torch.Generator().manual_seed(0)
    for count in (2_000, 20_000, 200_000, 2_000_000):
        values = torch.rand(count, generator=generator).clamp(max=1.0)
        found = Evidence(seen(torch.cat([values, torch.tensor([1.0])]))).divergences(
            np.array([0.0]), np.array([1.0]), UNSIGNED
        )
        assert abs(float(found.values[0])) < max(4.0 * math.sqrt(0.5 * found.freedom[0]) / count, 2e-3)
