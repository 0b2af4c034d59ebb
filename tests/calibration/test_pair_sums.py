"""Sums of neighbouring weight codes in 16 bits: by hand, by counting, and on the runtimes' own kernels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_models import target
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from edgekd._probes import int8_sums
from edgekd.calibration._base import Grid
from edgekd.calibration._fake_quantize import PerChannelWeightQuantizer
from edgekd.calibration._pair_sums import LARGEST_SUM, crowded, largest_pair
from edgekd.calibration.minmax import MinMax
from edgekd.quantize_onnx import quantize_onnx
from edgekd.spec import Options
from edgekd.targets._plain import PlainRunner

SHAPES = [(4, 6), (4, 7), (3, 1, 3, 3), (3, 2, 1, 1), (5, 3, 3, 3), (5, 4, 5, 5), (2, 5, 3), (1, 1)]


def weights(shape: tuple[int, ...], seed: int) -> Tensor:
    # many large values of one sign: most channels have a pair that does not fit
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) ** 0.25 * torch.randn(shape, generator=generator).add(0.7).sign()


def quantizer(*, pairs: bool = True) -> PerChannelWeightQuantizer:
    made = PerChannelWeightQuantizer(
        Grid(-127, 127, symmetric=True), torch.int8, -127, 127, torch.per_channel_symmetric, pairs=pairs
    )
    made.phase = "frozen"
    return made


def codes_of(weight: Tensor, *, pairs: bool = True) -> np.ndarray:
    made = quantizer(pairs=pairs)
    scale = made.parameters_of(weight)[0].view(-1, *[1] * (weight.ndim - 1))
    return torch.round(made(weight) / scale).long().numpy()


def neighbours(codes: np.ndarray) -> list[tuple[int, int, int]]:
    """(channel, a, b) of everything that some kernel may add up, found one by one."""
    found = []
    for channel, kernel in enumerate(codes):
        places = (
            [[kernel]] if kernel.ndim == 1 else [[kernel[(slice(None), *at)] for at in np.ndindex(kernel.shape[1:])]]
        )
        rows = [np.concatenate(places[0]), *(places[0] if kernel.ndim > 1 and kernel.shape[0] > 1 else [])]
        for row in rows:
            values = [*row.tolist(), 0]
            found += [(channel, values[i], values[i + 1]) for i in range(0, len(row), 2)]
    return found


def test_largest_pair_is_of_neighbours_along_the_inputs() -> None:
    weight = torch.zeros(2, 2, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([3.0, 4.0])  # two inputs at one place: neighbours
    weight[1, 0, 0, :] = torch.tensor([3.0, 4.0])  # two places of one input: not
    assert largest_pair(weight).tolist() == [7.0, 4.0]


def test_both_ways_of_pairing_count_when_a_place_has_an_odd_number_of_inputs() -> None:
    weight = torch.zeros(2, 3, 1, 2)
    weight[0, 2, 0, 0], weight[0, 0, 0, 1] = 5.0, 6.0  # third and fourth of the row
    weight[1, 0, 0, 1], weight[1, 1, 0, 1] = 5.0, 6.0  # first and second of the second place
    assert largest_pair(weight).tolist() == [11.0, 11.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_largest_pair_is_what_counting_finds(shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(0).integers(-127, 128, shape)
    expected = [max(abs(a + b) for channel, a, b in neighbours(codes) if channel == one) for one in range(shape[0])]
    assert largest_pair(torch.from_numpy(codes)).tolist() == expected


def test_scale_is_worked_by_hand() -> None:
    weight = torch.tensor([[1.0, 0.5, 0.0, 0.0], [1.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.001, 0.0]])
    scale = quantizer().parameters_of(weight)[0]
    # 127.5 / 1.5 = 85 codes for the largest; the other two pairs fit, so that it has all of them
    assert scale.tolist() == pytest.approx([1 / 85, 1 / 127, 1 / 127])
    assert quantizer(pairs=False).parameters_of(weight)[0].tolist() == pytest.approx([1 / 127] * 3)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from(SHAPES))
def test_largest_weight_of_a_channel_is_exactly_a_code(seed: int, shape: tuple[int, ...]) -> None:
    weight = weights(shape, seed).flatten(1)
    steps = weight / quantizer().parameters_of(weight.view(shape))[0][:, None]
    largest = steps.abs().amax(1)
    torch.testing.assert_close(largest, largest.round(), rtol=1e-6, atol=0.0)
    assert 63 <= float(largest.round().min()) <= float(largest.round().max()) <= 127


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from(SHAPES))
def test_no_neighbours_codes_exceed_16_bits(seed: int, shape: tuple[int, ...]) -> None:
    weight = weights(shape, seed)
    codes = codes_of(weight)
    assert all(255 * (max(a, 0) + max(b, 0)) < 2**15 for _, a, b in neighbours(codes))
    assert all(255 * (min(a, 0) + min(b, 0)) >= -(2**15) for _, a, b in neighbours(codes))
    assert np.abs(codes).max() <= 127


def test_learned_scales_keep_the_bound() -> None:
    weight, made = weights((8, 6), 0), quantizer()
    made.learn(weight)
    assert made.gain is not None
    made.gain.data.fill_(0.3)
    made.phase = "learn"
    codes = torch.round(made(weight) / made.parameters_of(weight)[0][:, None]).long().numpy()
    assert all(abs(a + b) <= 128 for _, a, b in neighbours(codes))
    assert np.abs(codes).max() <= 127


@pytest.mark.parametrize("shape", SHAPES)
def test_crowded_marks_both_neighbours_and_nothing_else(shape: tuple[int, ...]) -> None:
    codes = torch.from_numpy(np.random.default_rng(1).integers(-127, 128, shape))
    marked = crowded(codes, torch.full((len(codes),), 100))
    assert marked.shape == codes.shape
    alone = torch.where(marked, 0, codes)
    assert largest_pair(alone).max() <= 127
    for channel, row in enumerate(codes):
        wanted = {
            value for at, a, b in neighbours(codes.numpy()) if at == channel and abs(a + b) > 100 for value in (a, b)
        }
        assert {int(value) for value in row[marked[channel]]} - {0} == wanted - {0}


# on the runtimes


def convolution(weight: np.ndarray, groups: int) -> onnx.ModelProto:
    """A convolution whose windows do not overlap, read by float."""
    outputs, _, height, width = weight.shape
    shape = ["B", weight.shape[1] * groups, 4 * height, 4 * width]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", group=groups, strides=[height, width])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", outputs, 4, 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(outputs, np.float32), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def worst_inputs(weight: np.ndarray, groups: int) -> np.ndarray:
    """For every output channel an image of the largest codes where its weights have one sign, and one of the other."""
    outputs, inputs, height, width = weight.shape
    images = np.zeros((2 * outputs, inputs * groups, height, width), np.float32)
    for channel in range(outputs):
        first = channel // (outputs // groups) * inputs
        images[2 * channel, first : first + inputs] = weight[channel] > 0
        images[2 * channel + 1, first : first + inputs] = weight[channel] < 0
    return np.tile(images, (1, 1, 4, 4))


def off_by(weight: np.ndarray, groups: int, name: str, folder: Path, *, reduce_range: bool) -> float:
    """Largest difference between a runtime's kernels and exact arithmetic, in codes of the output."""
    chosen, images = target(name), worst_inputs(weight, groups)
    made = quantize_onnx(
        convolution(weight, groups),
        [{"x": images}],
        target=chosen,
        calibrator=MinMax(Options()),
        reduce_range=reduce_range,
    )
    path = folder / "model.onnx"
    onnx.save(made.model, path)
    low, high = made.ranges["y"]
    with chosen.reference(path) as runner, PlainRunner(path) as plain:
        difference = runner.run({"x": images})["y"] - plain.run({"x": images})["y"]
    return float(np.abs(difference).max()) / ((high - low) / 255)


CASES = [((8, 3, 3, 3), 1), ((8, 16, 1, 1), 1), ((16, 8, 3, 3), 1), ((8, 5, 5, 5), 1), ((8, 4, 3, 3), 2)]


@pytest.mark.parametrize(("shape", "groups"), [*CASES, ((16, 1, 3, 3), 16), ((8, 1, 5, 5), 8), ((8, 1, 3, 3), 4)])
@pytest.mark.parametrize("name", ["onnxruntime_x86", "openvino"])
def test_kernels_are_exact_at_the_worst_inputs(shape: tuple[int, ...], groups: int, name: str, tmp_path: Path) -> None:
    if (absent := target(name).missing()) is not None:
        pytest.skip(absent)
    weight = weights(shape, math.prod(shape)).numpy()
    assert off_by(weight, groups, name, tmp_path, reduce_range=True) < 1.5


@pytest.mark.skipif(int8_sums() == "exact", reason="this processor sums products of codes exactly")
@pytest.mark.parametrize(("shape", "groups"), CASES)
def test_kernels_saturate_at_the_worst_inputs_without_the_bound(
    shape: tuple[int, ...], groups: int, tmp_path: Path
) -> None:
    weight = weights(shape, math.prod(shape)).numpy()
    assert off_by(weight, groups, "onnxruntime_x86", tmp_path, reduce_range=False) > 3


def test_bound_is_the_one_that_rounding_needs() -> None:
    # halves round to even: 63.5 and 64.0 become 64 and 64, and no two numbers that sum to 127.5 become more
    assert LARGEST_SUM + 1 < 129
    assert 255 * 128 < 2**15 <= 255 * 129
