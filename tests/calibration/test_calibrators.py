"""Which range each calibrator takes from a histogram, and the grid's arithmetic."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from edgekd.calibration._base import Calibrator, Grid
from edgekd.calibration._histogram import BINS, Histogram
from edgekd.calibration.entropy import Entropy
from edgekd.calibration.minmax import MinMax
from edgekd.calibration.moving_average import MovingAverage
from edgekd.calibration.mse import MeanSquaredError
from edgekd.calibration.percentile import Percentile
from edgekd.spec import Options

UNSIGNED = Grid(0, 255, symmetric=False)
SIGNED = Grid(-128, 127, symmetric=False)
SYMMETRIC = Grid(-128, 127, symmetric=True)


def minmax() -> MinMax:
    return MinMax(Options())


def mse() -> MeanSquaredError:
    return MeanSquaredError(Options())


def percentile(share: float) -> Percentile:
    return Percentile(Percentile.Options(percentile=share))


def seen(values: Tensor) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


def normal(count: int = 20_000, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def error(values: Tensor, bounds: tuple[float, float], grid: Grid) -> float:
    """Mean squared error of quantizing these very values."""
    wide = values.double()
    scale, zero_point = grid.parameters(*(torch.tensor(bound, dtype=torch.float64) for bound in bounds))
    return float(((grid.quantize(wide, scale, zero_point) - wide) ** 2).mean())


# the grid


def test_scale_and_zero_point_are_those_worked_by_hand() -> None:
    # [-1, 3] on 0..255: scale 4 / 255; 1 / scale = 63.75, rounded to 64
    scale, zero_point = UNSIGNED.parameters(torch.tensor(-1.0), torch.tensor(3.0))
    assert float(scale) == pytest.approx(4 / 255)
    assert int(zero_point) == 64
    # the same on -128..127: 128 codes lower
    scale, zero_point = SIGNED.parameters(torch.tensor(-1.0), torch.tensor(3.0))
    assert float(scale) == pytest.approx(4 / 255)
    assert int(zero_point) == -64
    # symmetric: 3 / 127 is more than 1 / 128
    scale, zero_point = SYMMETRIC.parameters(torch.tensor(-1.0), torch.tensor(3.0))
    assert float(scale) == pytest.approx(3 / 127)
    assert int(zero_point) == 0


def test_symmetric_scale_uses_the_additional_negative_code() -> None:
    scale, _ = SYMMETRIC.parameters(torch.tensor(-12.8), torch.tensor(1.0))
    assert float(scale) == pytest.approx(0.1)
    assert float(SYMMETRIC.quantize(torch.tensor(-12.8), scale, torch.tensor(0))) == pytest.approx(-12.8)


@pytest.mark.parametrize(("grid", "lowest"), [(UNSIGNED, 0), (SIGNED, -128)])
def test_zero_point_is_the_lowest_code_when_nothing_is_negative(grid: Grid, lowest: int) -> None:
    for minimum in (0.0, 0.5):  # a range above 0 is widened to it
        scale, zero_point = grid.parameters(torch.tensor(minimum), torch.tensor(2.55))
        assert int(zero_point) == lowest
        assert float(scale) == pytest.approx(0.01)


@pytest.mark.parametrize(("grid", "highest"), [(UNSIGNED, 255), (SIGNED, 127)])
def test_zero_point_is_the_highest_code_when_nothing_is_positive(grid: Grid, highest: int) -> None:
    _, zero_point = grid.parameters(torch.tensor(-2.0), torch.tensor(-0.5))
    assert int(zero_point) == highest


@pytest.mark.parametrize("grid", [UNSIGNED, SIGNED, SYMMETRIC])
@pytest.mark.parametrize("bounds", [(-1.0, 3.0), (0.0, 6.0), (-5.0, 0.0), (-0.001, 1e4), (1.0, 1.0)])
def test_zero_is_represented_exactly(grid: Grid, bounds: tuple[float, float]) -> None:
    scale, zero_point = grid.parameters(*(torch.tensor(bound) for bound in bounds))
    assert float(grid.quantize(torch.tensor(0.0), scale, zero_point)) == 0.0
    assert grid.low <= int(zero_point) <= grid.high


@pytest.mark.parametrize("grid", [UNSIGNED, SIGNED, SYMMETRIC])
def test_scale_is_1_when_the_tensor_is_always_0(grid: Grid) -> None:
    # a tiny scale would overflow the int32 bias of the operator that reads the tensor
    scale, zero_point = grid.parameters(torch.tensor(0.0), torch.tensor(0.0))
    assert float(scale) == 1.0
    assert float(grid.quantize(torch.tensor(0.0), scale, zero_point)) == 0.0


def test_scale_stays_usable_when_values_are_tiny_or_huge() -> None:
    for magnitude in (1e-30, 1e30):
        scale, _ = SIGNED.parameters(torch.tensor(-magnitude), torch.tensor(magnitude))
        assert torch.isfinite(scale)
        assert float(scale) >= torch.finfo(torch.float32).eps


def test_parameters_keep_the_shape_of_the_bounds() -> None:
    scale, zero_point = UNSIGNED.parameters(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert scale.shape == zero_point.shape == (2,)
    assert zero_point.dtype == torch.int32


def test_scales_are_float16_values_when_the_file_stores_them_so() -> None:
    half = Grid(-128, 127, symmetric=True, half_scales=True)
    scale, _ = half.parameters(torch.tensor(-1.0), torch.tensor(1.0))
    assert float(scale) == float(scale.half())
    assert float(scale) == pytest.approx(1 / 127, rel=2.0**-11)
    assert float(SYMMETRIC.parameters(torch.tensor(-1.0), torch.tensor(1.0))[0]) != float(scale)


@pytest.mark.parametrize("scale", [1e-5, 1e-7, 7e4, 1e30])
def test_scale_is_left_alone_when_float16_cannot_hold_it(scale: float) -> None:
    half = Grid(-128, 127, symmetric=True, half_scales=True)
    assert float(half.stored(torch.tensor(scale))) == float(torch.tensor(scale))


def test_quantizing_equals_torch_s_own() -> None:
    values = normal(1000) * 3
    for grid in (UNSIGNED, SIGNED, SYMMETRIC):
        scale, zero_point = grid.parameters(torch.tensor(-4.0), torch.tensor(6.0))
        theirs = torch.fake_quantize_per_tensor_affine(values, float(scale), int(zero_point), grid.low, grid.high)
        ours = grid.quantize(values, scale, zero_point)
        # torch multiplies by 1 / scale: a value on the border between two codes may round to the other one
        differs = (ours - theirs).abs() > 1e-5
        assert int(differs.sum()) <= 2


# minmax


@pytest.mark.parametrize("grid", [UNSIGNED, SIGNED, SYMMETRIC])
def test_minmax_gives_the_exact_extremes(grid: Grid) -> None:
    values = torch.tensor([0.123456789, -7.654321, 3.3333333])
    assert minmax().range(seen(values), grid) == (float(values.min()), float(values.max()))


# moving average


def test_moving_average_gives_the_mean_of_the_samples_extremes() -> None:
    # samples reach from -1 to 1, from -2 to 4 and from 0 to 4: -3 / 3 and 9 / 3
    values = torch.tensor([[-1.0, 1.0], [4.0, -2.0], [4.0, 0.0]])
    assert MovingAverage(Options()).range(seen(values), UNSIGNED) == (-1.0, 3.0)


def test_moving_average_is_the_limit_of_a_slow_one_over_random_samples() -> None:
    values = normal(500 * 10).view(500, 10)
    low, high = MovingAverage(Options()).range(seen(values), UNSIGNED)
    extremes = torch.stack([values.amin(dim=1), values.amax(dim=1)], dim=1).tolist()
    average = [0.0, 0.0]
    for row in torch.randint(0, 500, (20_000,), generator=torch.Generator().manual_seed(1)).tolist():
        average = [0.999 * old + 0.001 * new for old, new in zip(average, extremes[row], strict=True)]
    # extremes have a standard deviation of 0.6, an average over about 2000 of them 0.6 / sqrt(2000) = 0.013
    assert average == pytest.approx([low, high], abs=0.05)


def test_moving_average_counts_a_rare_sample_for_no_more_than_a_common_one() -> None:
    values = torch.ones(100, 5)
    values[7, 3] = 101.0
    assert MovingAverage(Options()).range(seen(values), UNSIGNED) == (1.0, 2.0)
    assert minmax().range(seen(values), UNSIGNED) == (1.0, 101.0)


def test_moving_average_equals_minmax_when_all_samples_reach_alike() -> None:
    values = torch.stack([torch.linspace(-0.3, 0.7, 11)] * 7)
    assert MovingAverage(Options()).range(seen(values), UNSIGNED) == minmax().range(seen(values), UNSIGNED)


# percentile


def test_percentile_cuts_half_of_the_share_on_each_side() -> None:
    # 1..1000 and their negatives, shuffled: 99 % keeps all but the outer 10 of 2000 on each side
    values = torch.cat([torch.arange(1, 1001), -torch.arange(1, 1001)]).float()
    low, high = percentile(99.0).range(seen(values), UNSIGNED)
    width = 2 * 1024.0 / BINS
    assert high == pytest.approx(990.0, abs=width)
    assert low == pytest.approx(-990.0, abs=width)


def test_percentile_is_near_the_quantile_when_values_are_normal() -> None:
    low, high = percentile(95.0).range(seen(normal(200_000)), UNSIGNED)
    # 2.5 % of a standard normal lies beyond 1.96; at 200 000 samples the quantile's standard error is 0.006
    assert high == pytest.approx(1.96, abs=0.03)
    assert low == pytest.approx(-1.96, abs=0.03)


def test_percentile_of_100_keeps_everything() -> None:
    values = normal()
    assert percentile(100.0).range(seen(values), UNSIGNED) == (float(values.min()), float(values.max()))


def test_percentile_ignores_an_outlier_that_minmax_covers() -> None:
    values = torch.cat([normal().clamp(-4, 4), torch.tensor([1000.0])])
    assert percentile(99.9).range(seen(values), UNSIGNED)[1] < 5.0
    assert minmax().range(seen(values), UNSIGNED)[1] == 1000.0


def test_percentile_keeps_zero_as_the_lowest_code_when_the_tensor_follows_a_relu() -> None:
    low, high = percentile(99.0).range(seen(normal().relu()), UNSIGNED)
    assert low == 0.0
    assert 2.0 < high < 3.0


@pytest.mark.parametrize("value", [0.0, 3.7, -3.7, 1e-30])
def test_percentile_gives_the_value_when_all_are_equal(value: float) -> None:
    histogram = seen(torch.full((50,), value))
    assert percentile(99.0).range(histogram, UNSIGNED) == (histogram.minimum, histogram.maximum)


@pytest.mark.parametrize("share", [50.0, 100.1, -1.0])
def test_percentile_refuses_a_share_that_is_none(share: float) -> None:
    with pytest.raises(ValidationError, match="percentile"):
        Percentile.Options(percentile=share)


# mse


@pytest.mark.parametrize("grid", [UNSIGNED, SIGNED, SYMMETRIC])
@pytest.mark.parametrize("kind", ["normal", "relu", "outlier", "heavy"])
def test_mse_finds_what_brute_force_finds(grid: Grid, kind: str) -> None:
    values = {
        "normal": normal(2000),
        "relu": normal(2000).relu(),
        "outlier": torch.cat([normal(2000), torch.tensor([12.0])]),
        "heavy": normal(2000) ** 3,
    }[kind]
    found = mse().range(seen(values), grid)
    low, high = float(values.min()), float(values.max())
    best = min(error(values, (low * share, high * share), grid) for share in torch.linspace(1, 0.2, 400).tolist())
    # bins' centres stand for the values, 1 / 2048 of the range wide; the best of a flat valley is not unique
    assert error(values, found, grid) <= best * 1.02


@pytest.mark.parametrize("grid", [UNSIGNED, SIGNED, SYMMETRIC, Grid(-128, 127, symmetric=True, half_scales=True)])
@pytest.mark.parametrize("seed", range(5))
def test_mse_is_never_worse_than_minmax(grid: Grid, seed: int) -> None:
    values = normal(3000, seed) * (1 + 3 * torch.rand(3000, generator=torch.Generator().manual_seed(seed)))
    histogram = seen(values)
    # on the histogram, whose centres the search sees, it cannot be worse
    centres = histogram.centres().clamp(histogram.minimum, histogram.maximum).repeat_interleave(histogram.counts)
    assert error(centres, mse().range(histogram, grid), grid) <= error(centres, minmax().range(histogram, grid), grid)
    assert error(values, mse().range(histogram, grid), grid) <= 1.01 * error(
        values, minmax().range(histogram, grid), grid
    )


def test_mse_cuts_a_lonely_outlier_the_more_the_fewer_codes_there_are() -> None:
    histogram = seen(values := torch.cat([normal(50_000), torch.tensor([30.0])]))
    high_of_16 = mse().range(histogram, Grid(0, 15, symmetric=False))[1]
    low, high = mse().range(histogram, UNSIGNED)
    assert high_of_16 < 15.0 < high < 30.0
    assert low == pytest.approx(float(values.min()) * high / 30.0)  # both sides shrink by the same factor


@pytest.mark.parametrize(
    "calibrator",
    [minmax(), percentile(99.99), mse(), Entropy(Options()), MovingAverage(Options())],
    ids=["minmax", "percentile", "mse", "entropy", "moving_average"],
)
@pytest.mark.parametrize(("grid", "lowest"), [(UNSIGNED, 0), (SIGNED, -128)])
def test_relu_can_be_absorbed_whatever_calibrator_chose_the_range(
    calibrator: Calibrator, grid: Grid, lowest: int
) -> None:
    low, high = calibrator.range(seen(normal().relu()), grid)
    scale, zero_point = grid.parameters(torch.tensor(low), torch.tensor(high))
    assert int(zero_point) == lowest
    assert float(grid.quantize(torch.tensor(0.0), scale, zero_point)) == 0.0
