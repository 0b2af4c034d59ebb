"""The counting of values into bins: equal to exact arithmetic, on every path and in every layout."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.calibration._counting import _BLOCK, BINS, count, extremes, rows_of

HALF = BINS // 2
# near the edges of bins, where a rounded product could fall on the wrong side
NEAR_EDGES = st.builds(
    lambda bin_, steps, sign: sign * float(np.float32(bin_ / HALF) + np.float32(steps) * np.float32(2.0**-24)),
    st.integers(0, HALF - 1),
    st.integers(-3, 3),
    st.sampled_from([-1.0, 1.0]),
)
VALUES = st.one_of(
    NEAR_EDGES, st.floats(-1.0, 1.0, width=32, allow_subnormal=True), st.sampled_from([0.0, -0.0, 2.0**-149])
)


def matrix(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def exact_bin(value: float, limit: float) -> int:
    """By whole numbers: bin k of a side is (k w, (k + 1) w], and 0 is in the first positive one."""
    width = Fraction(limit) / HALF
    index = max(math.ceil(abs(Fraction(value)) / width) - 1, 0)
    return HALF - 1 - index if value < 0 else HALF + index


@settings(max_examples=300, deadline=None)
@given(values=st.lists(VALUES, min_size=1, max_size=20), power=st.sampled_from([0, 1, 5, 40, 127, -20, -100]))
def test_counts_equal_those_of_exact_arithmetic(values: list[float], power: int) -> None:
    limit = 2.0**power
    rows = matrix(*values) * np.float32(limit)
    wanted = np.zeros(BINS, dtype=np.int64)
    for value in rows[0].tolist():
        wanted[exact_bin(value, limit)] += 1
    np.testing.assert_array_equal(count(rows, limit, signed=True), wanted)
    np.testing.assert_array_equal(count(torch.from_numpy(rows), limit, signed=True), wanted)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(VALUES.map(abs), min_size=1, max_size=20))
def test_counts_are_the_same_when_it_is_known_that_nothing_is_negative(values: list[float]) -> None:
    rows = matrix(*values, -0.0)
    np.testing.assert_array_equal(count(rows, 1.0, signed=False), count(rows, 1.0, signed=True))


@pytest.mark.parametrize("shape", [(3, _BLOCK + 7), (2 * _BLOCK + 1, 1), (5, _BLOCK // 3), (1, _BLOCK), (_BLOCK, 2)])
def test_blocks_change_nothing_when_there_are_several(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    low, high = extremes(rows)
    np.testing.assert_array_equal(low, rows.min(axis=1))
    np.testing.assert_array_equal(high, rows.max(axis=1))
    counts = count(rows, 1.0, signed=True)
    assert counts.sum() == rows.size
    np.testing.assert_array_equal(counts, count(torch.from_numpy(rows), 1.0, signed=True))


def test_extremes_are_the_same_on_a_device() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32)
    for ours, theirs in zip(extremes(rows), extremes(torch.from_numpy(rows)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("place", [0, 5, _BLOCK + 3])
def test_extremes_are_nan_for_the_row_that_has_one(place: int) -> None:
    rows = np.zeros((3, _BLOCK + 10), dtype=np.float32)
    rows[1, place] = math.nan
    low, high = extremes(rows)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("shape", "rows"), [((), (1, 1)), ((4,), (4, 1)), ((2, 3), (2, 3)), ((2, 3, 4, 5), (2, 60)), ((0, 3), (0, 0))]
)
def test_rows_are_samples(shape: tuple[int, ...], rows: tuple[int, int]) -> None:
    assert rows_of(np.zeros(shape)).shape == rows
    assert rows_of(torch.zeros(shape)).shape == rows


def test_rows_of_an_array_and_of_a_tensor_share_its_memory() -> None:
    values = torch.zeros(2, 3, 4, 4)
    assert np.shares_memory(rows_of(values), values.numpy())
    assert np.shares_memory(rows_of(values.numpy()), values.numpy())
    channels_last = values.to(memory_format=torch.channels_last)
    assert np.shares_memory(rows_of(channels_last), channels_last.numpy())


@pytest.mark.parametrize("layout", ["transposed", "expanded", "every second"])
def test_rows_hold_each_sample_s_values_whatever_the_layout(layout: str) -> None:
    values = np.arange(2 * 6 * 4, dtype=np.float32).reshape(2, 6, 4)
    values = {
        "transposed": values.transpose(0, 2, 1),
        "expanded": np.broadcast_to(values[:, :1], (2, 5, 4)),
        "every second": values[:, ::2, ::-1],
    }[layout]
    for row, sample in zip(rows_of(values), values, strict=True):
        assert sorted(row.tolist()) == sorted(sample.reshape(-1).tolist())
