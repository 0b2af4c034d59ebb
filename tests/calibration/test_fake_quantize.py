"""The quantizers of a prepared graph: their phases, their gradients, and torch's own arithmetic as the yardstick."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgekd.calibration._base import Grid
from edgekd.calibration._fake_quantize import (
    ActivationQuantizer,
    PerChannelWeightQuantizer,
    WeightQuantizer,
    quantizers,
    set_phase,
)
from edgekd.calibration.minmax import MinMax
from edgekd.calibration.mse import MeanSquaredError
from edgekd.calibration.percentile import Percentile
from edgekd.errors import DataError
from edgekd.spec import Options

UNSIGNED = Grid(0, 255, symmetric=False)
SIGNED = Grid(-128, 127, symmetric=False)
SYMMETRIC = Grid(-128, 127, symmetric=True)
WEIGHTS = Grid(-127, 127, symmetric=True)


def activation(
    grid: Grid = UNSIGNED, calibrator: MinMax | Percentile | MeanSquaredError | None = None
) -> ActivationQuantizer:
    dtype = torch.uint8 if grid.low == 0 else torch.int8
    return ActivationQuantizer(
        calibrator or MinMax(Options()), grid, dtype, grid.low, grid.high, torch.per_tensor_affine
    )


def weights(grid: Grid = WEIGHTS, axis: int = 0) -> WeightQuantizer:
    return WeightQuantizer(grid, torch.int8, grid.low, grid.high, torch.per_channel_symmetric, ch_axis=axis)


def calibrated(quantizer: ActivationQuantizer, values: Tensor) -> ActivationQuantizer:
    quantizer.phase = "observe"
    quantizer(values)
    quantizer.calibrate()
    quantizer.phase = "frozen"
    return quantizer


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# activations, by phase


def test_values_pass_unchanged_when_off_or_observing() -> None:
    values = normal(4, 5)
    quantizer = activation()
    assert torch.equal(quantizer(values), values)
    assert quantizer.histogram.total == 0
    quantizer.phase = "observe"
    assert torch.equal(quantizer(values), values)
    assert quantizer.histogram.total == 20


def test_range_is_the_calibrator_s_choice() -> None:
    quantizer = calibrated(activation(), torch.tensor([-1.0, 3.0]))
    assert (float(quantizer.minimum), float(quantizer.maximum)) == (-1.0, 3.0)
    scale, zero_point = quantizer.calculate_qparams()
    assert (float(scale), int(zero_point)) == (pytest.approx(4 / 255), 64)


def test_range_holds_zero_when_all_values_are_positive() -> None:
    quantizer = calibrated(activation(), torch.tensor([2.0, 4.0]))
    assert (float(quantizer.minimum), float(quantizer.maximum)) == (0.0, 4.0)


@pytest.mark.parametrize(("grid", "zero_point"), [(UNSIGNED, 0), (SIGNED, -128), (SYMMETRIC, 0)])
def test_zero_point_serves_the_kernel_when_the_tensor_follows_a_relu(grid: Grid, zero_point: int) -> None:
    quantizer = calibrated(activation(grid), normal(1000).relu())
    assert int(quantizer.calculate_qparams()[1]) == zero_point


def test_calibrating_says_what_to_do_when_nothing_was_seen() -> None:
    with pytest.raises(DataError, match=r"Calibration saw no data\. Give quantize\.calibration_samples"):
        activation().calibrate()


def test_forgetting_starts_observation_anew() -> None:
    quantizer = calibrated(activation(), torch.tensor([-100.0, 100.0]))
    quantizer.forget()
    assert float(calibrated(quantizer, torch.tensor([-1.0, 1.0])).maximum) == 1.0


def test_range_stands_still_when_frozen() -> None:
    quantizer = calibrated(activation(), normal(100))
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(normal(100) * 50)
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


def test_range_follows_the_batches_by_a_hundredth_when_tracking() -> None:
    quantizer = calibrated(activation(), torch.tensor([-1.0, 3.0]))
    quantizer.phase = "track"
    quantizer(torch.tensor([-2.0, 5.0]))
    # -1 + (-2 + 1) / 100 and 3 + (5 - 3) / 100
    assert float(quantizer.minimum) == pytest.approx(-1.01)
    assert float(quantizer.maximum) == pytest.approx(3.02)


def test_tracked_range_keeps_the_calibrated_share_of_the_extremes() -> None:
    # 99 % of 1000 values and one outlier of 100: the outlier is cut, and stays cut while tracking
    values = torch.cat([normal(1000).clamp(-3, 3), torch.tensor([100.0])])
    quantizer = calibrated(activation(calibrator=Percentile(Percentile.Options(percentile=99.0))), values)
    chosen = float(quantizer.maximum)
    assert chosen < 4.0
    assert float(quantizer.ratio[1]) == pytest.approx(chosen / 100.0)
    quantizer.phase = "track"
    for _ in range(20):
        quantizer(values)
    assert float(quantizer.maximum) == pytest.approx(chosen, rel=1e-5)


def test_tracked_range_does_not_change_sides_when_the_calibrated_one_lay_above_zero() -> None:
    # all but one value in [1, 2]: the percentile's lower end is positive, the lowest value seen negative
    values = torch.cat([torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1, torch.tensor([-50.0])])
    quantizer = calibrated(activation(calibrator=Percentile(Percentile.Options(percentile=99.0))), values)
    assert float(quantizer.minimum) == 0.0
    assert float(quantizer.ratio.min()) >= 0.0
    quantizer.phase = "track"
    for _ in range(200):
        quantizer(torch.tensor([1.0, 2.0]))
    assert float(quantizer.minimum) == 0.0
    assert 1.5 < float(quantizer.maximum) < 2.1


def test_range_is_a_fixed_point_when_batches_repeat_the_calibration_data() -> None:
    values = normal(500)
    quantizer = calibrated(activation(calibrator=MeanSquaredError(Options())), values)
    before = (float(quantizer.minimum), float(quantizer.maximum))
    quantizer.phase = "track"
    quantizer(values)
    assert (float(quantizer.minimum), float(quantizer.maximum)) == pytest.approx(before, rel=1e-6)


# activations, arithmetic


@pytest.mark.parametrize("grid", [UNSIGNED, SIGNED, SYMMETRIC])
def test_result_equals_torch_s_quantize_and_dequantize(grid: Grid) -> None:
    values = normal(2000) * 2
    quantizer = calibrated(activation(grid), values)
    scale, zero_point = quantizer.calculate_qparams()
    operators = torch.ops.quantized_decomposed
    arguments = (float(scale), int(zero_point), grid.low, grid.high, quantizer.dtype)
    codes = operators.quantize_per_tensor.default(values, *arguments)
    assert codes.dtype == quantizer.dtype
    assert torch.equal(quantizer(values), operators.dequantize_per_tensor.default(codes, *arguments))


def test_gradient_is_straight_through_inside_the_range_and_zero_outside() -> None:
    quantizer = calibrated(activation(), torch.tensor([-1.0, 1.0]))
    values = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    quantizer(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("phase", ["track", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_element_type_is_kept_when_lower_precision_is_used(phase: str, dtype: torch.dtype) -> None:
    quantizer = calibrated(activation(), normal(100))
    set_phase(quantizer, phase)  # type: ignore[arg-type]
    assert quantizer(normal(100).to(dtype)).dtype == dtype


def test_state_holds_the_range_so_that_it_survives_saving() -> None:
    quantizer = calibrated(activation(calibrator=MeanSquaredError(Options())), normal(1000))
    other = activation(calibrator=MeanSquaredError(Options()))
    other.load_state_dict(quantizer.state_dict())
    other.phase = "frozen"
    values = normal(100, seed=1)
    assert torch.equal(other(values), quantizer(values))
    assert torch.equal(other.ratio, quantizer.ratio)


# weights


def test_weight_scales_are_those_worked_by_hand() -> None:
    quantizer = weights()
    quantizer(torch.tensor([[1.27, -0.5], [0.0, -2.54]]).view(2, 2, 1, 1))
    scale, zero_point = quantizer.calculate_qparams()
    assert scale.tolist() == pytest.approx([0.01, 0.02])
    assert zero_point.tolist() == [0, 0]


def test_weight_result_equals_torch_s_quantize_and_dequantize() -> None:
    weight = normal(6, 3, 3, 3)
    quantizer = weights()
    quantizer.phase = "frozen"
    result = quantizer(weight)
    scale, zero_point = quantizer.calculate_qparams()
    operators = torch.ops.quantized_decomposed
    codes = operators.quantize_per_channel.default(weight, scale, zero_point, 0, -127, 127, torch.int8)
    again = operators.dequantize_per_channel.default(codes, scale, zero_point, 0, -127, 127, torch.int8)
    assert torch.equal(result, again)
    # the largest weight of each channel is a code of its own
    assert codes.flatten(1).abs().amax(dim=1).tolist() == [127] * 6


def test_weights_pass_unchanged_when_off_and_are_remembered_for_conversion() -> None:
    weight = normal(2, 2)
    quantizer = weights()
    assert torch.equal(quantizer(weight), weight)
    assert quantizer.calculate_qparams()[0].tolist() == pytest.approx((weight.abs().amax(dim=1) / 127).tolist())


def test_weight_parameters_are_refused_when_the_graph_never_ran() -> None:
    with pytest.raises(RuntimeError, match="before the graph has run once"):
        weights().calculate_qparams()


def test_weight_scale_has_a_floor_when_a_channel_is_all_zero() -> None:
    weight = torch.stack([torch.zeros(4), torch.ones(4), torch.full((4,), 1e-12)])
    quantizer = weights()
    quantizer.phase = "frozen"
    result = quantizer(weight)
    scale = quantizer.calculate_qparams()[0]
    # 2^-12 of the largest: an int32 bias over s_x * s_w stays far from overflowing
    assert scale.tolist() == pytest.approx([2.0**-12 / 127, 1 / 127, 2.0**-12 / 127])
    assert torch.equal(result[0], torch.zeros(4))
    assert result.isfinite().all()


def test_weight_scale_is_usable_when_the_whole_weight_is_zero() -> None:
    quantizer = weights()
    quantizer.phase = "frozen"
    assert torch.equal(quantizer(torch.zeros(3, 4)), torch.zeros(3, 4))
    assert bool((quantizer.calculate_qparams()[0] > 0).all())


def test_weight_codes_stay_in_7_bits_when_the_grid_says_so() -> None:
    weight = normal(5, 40)
    quantizer = weights(Grid(-64, 64, symmetric=True))
    quantizer.phase = "frozen"
    codes = quantizer(weight) / quantizer.calculate_qparams()[0][:, None]
    assert float(codes.abs().max()) == pytest.approx(64.0)
    # pairs of u8 * s8 then fit int16 on processors that add them there
    assert 2 * 255 * 64 <= 2**15 - 1


def test_weight_channels_lie_along_the_axis_that_was_asked_for() -> None:
    weight = normal(3, 5)
    quantizer = weights(axis=1)
    quantizer(weight)
    assert quantizer.calculate_qparams()[0].tolist() == pytest.approx((weight.abs().amax(dim=0) / 127).tolist())


def test_weight_gradient_is_straight_through() -> None:
    weight = normal(4, 6).requires_grad_()
    quantizer = weights()
    quantizer.phase = "frozen"
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(4, 6))  # the grid covers every weight, none is clipped


def test_weight_scales_follow_the_weights_even_when_frozen() -> None:
    quantizer = weights()
    quantizer.phase = "frozen"
    quantizer(torch.ones(1, 2))
    quantizer(torch.full((1, 2), 2.54))
    assert quantizer.calculate_qparams()[0].tolist() == pytest.approx([0.02])


def test_weight_scales_are_float16_values_when_the_file_stores_them_so() -> None:
    quantizer = weights(Grid(-127, 127, symmetric=True, half_scales=True))
    quantizer(normal(8, 10))
    scale = quantizer.calculate_qparams()[0]
    assert torch.equal(scale, scale.half().float())


# the whole graph


def test_phase_reaches_every_quantizer_once() -> None:
    shared = activation()
    graph = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, weights()), "c": nn.ReLU()})
    assert [name for name, _ in quantizers(graph)] == ["a", "b.1"]
    set_phase(graph, "track")
    assert {quantizer.phase for _, quantizer in quantizers(graph)} == {"track"}


def test_torchao_passes_the_channel_axis_by_the_class_name() -> None:
    # the name is what its preparation looks for; without it every weight would be quantized along axis 0 by luck
    assert "PerChannel" in PerChannelWeightQuantizer.__name__
    assert "PerChannel" not in ActivationQuantizer.__name__
