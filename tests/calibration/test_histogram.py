"""The streaming histogram: exact counts in fixed memory, whatever the order or split of what it sees."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekd.calibration._histogram import BINS, Histogram
from edgekd.errors import DataError

# powers of two sit on the edges of bins: the values for which order could matter
EDGES = st.integers(-20, 20).map(lambda power: 2.0**power)
VALUES = st.one_of(
    EDGES,
    EDGES.map(lambda value: -value),
    st.just(0.0),
    st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=True),
    st.floats(-(2.0**100), 2.0**100, width=32),
)
SAMPLES = st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=12)
BATCHES = st.lists(st.lists(VALUES, min_size=0, max_size=6), min_size=1, max_size=6)


def histogram_of(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(batch)
    return histogram


def assert_same(left: Histogram, right: Histogram) -> None:
    assert left.to_json() == right.to_json()
    assert torch.equal(left.counts, right.counts)
    assert (left.limit, left.minimum, left.maximum) == (right.limit, right.minimum, right.maximum)


def test_values_fall_into_the_bins_that_a_hand_puts_them_in() -> None:
    # limit 4, bins of width 4 / 2048: 1 is the upper edge of the 512th positive bin, which has index 2048 + 511
    histogram = histogram_of(torch.tensor([4.0, 1.0, 1.0, 0.0, -1.0, -4.0]))
    found = {int(index): int(histogram.counts[index]) for index in torch.nonzero(histogram.counts)}
    assert histogram.limit == 4.0
    assert found == {4095: 1, 2048 + 511: 2, 2048: 1, 2048 - 512: 1, 0: 1}


@settings(max_examples=80, deadline=None)
@given(batches=BATCHES, seed=st.integers(0, 1000))
def test_counts_are_the_same_in_any_order_and_split(batches: list[list[float]], seed: int) -> None:
    flat = torch.tensor([value for batch in batches for value in batch])
    shuffled = flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))]
    together = histogram_of(flat)
    assert_same(together, histogram_of(*(torch.tensor(batch) for batch in batches)))
    assert_same(together, histogram_of(*shuffled.split(2)))
    assert together.total == len(flat)


@settings(max_examples=80, deadline=None)
@given(batches=BATCHES)
def test_merging_equals_seeing_everything_when_in_either_direction(batches: list[list[float]]) -> None:
    tensors = [torch.tensor(batch) for batch in batches]
    together = histogram_of(*tensors)
    forward, backward = Histogram(), Histogram()
    for tensor in tensors:
        forward.merge(histogram_of(tensor))
    for tensor in reversed(tensors):
        backward.merge(histogram_of(tensor))
    assert_same(together, forward)
    assert_same(together, backward)


@settings(max_examples=150, deadline=None)
@given(samples=SAMPLES, data=st.data())
def test_json_is_identical_for_any_order_any_batches_and_any_processes(
    samples: list[tuple[float, float, float]], data: st.DataObject
) -> None:
    together = histogram_of(torch.tensor(samples))
    order = data.draw(st.permutations(samples))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(samples)), max_size=6)))
    batches = [order[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    processes = data.draw(st.lists(st.integers(0, 2), min_size=len(batches), max_size=len(batches)))
    parts = [Histogram(), Histogram(), Histogram()]
    for process, batch in zip(processes, batches, strict=True):
        parts[process].update(torch.tensor(batch).reshape(-1, 3))
    merged = Histogram()
    for part in data.draw(st.permutations(parts)):
        merged.merge(Histogram.from_json(json.loads(json.dumps(part.to_json()))))
    assert json.dumps(merged.to_json()) == json.dumps(together.to_json())


@settings(max_examples=80, deadline=None)
@given(samples=SAMPLES)
def test_mean_extremes_are_those_of_exact_fractions(samples: list[tuple[float, float, float]]) -> None:
    found = histogram_of(torch.tensor(samples)).mean_extremes()
    rows = torch.tensor(samples).tolist()  # as float32 holds them
    wanted = [float(sum(Fraction(pick(row)) for row in rows) / len(rows)) for pick in (min, max)]
    assert list(found) == wanted


def test_mean_extremes_are_of_samples_not_of_batches() -> None:
    # samples reach to 1, 2 and 6; the mean is 3, of batches it would be (2 + 6) / 2
    first, second = torch.tensor([[[1.0, 0.0]], [[2.0, -3.0]]]), torch.tensor([[[6.0, 3.0]]])
    histogram = histogram_of(first, second)
    assert histogram.samples == 3
    assert histogram.mean_extremes() == (0.0, 3.0)


def test_sums_of_extremes_keep_the_smallest_and_the_largest_float32() -> None:
    tiny, huge = 2.0**-149, float(torch.finfo(torch.float32).max)
    assert histogram_of(torch.full((3, 1), tiny)).mean_extremes() == (tiny, tiny)
    assert histogram_of(torch.full((5, 2), huge)).mean_extremes() == (huge, huge)
    # sums of floats would lose the tiny ones beside the huge ones
    mixed = histogram_of(torch.tensor([[huge], [tiny], [-huge], [tiny]]))
    assert mixed.mean_extremes() == (tiny / 2, tiny / 2)


def test_arrays_are_counted_as_tensors_are() -> None:
    values = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    from_array = Histogram()
    from_array.update(values.numpy())
    assert_same(from_array, histogram_of(values))
    from_array.update(values.double().numpy())
    assert_same(from_array, histogram_of(values, values))


def test_layout_of_a_tensor_does_not_matter() -> None:
    values = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    turned = values.transpose(1, 3).contiguous().transpose(1, 3)
    assert_same(histogram_of(values), histogram_of(values.to(memory_format=torch.channels_last)))
    assert_same(histogram_of(values), histogram_of(turned))


def test_zero_is_one_value_whatever_its_sign() -> None:
    assert histogram_of(torch.tensor([-0.0, 1.0])).counts[BINS // 2] == 1
    assert histogram_of(torch.tensor([-0.0, -1.0])).counts[BINS // 2] == 1


def test_a_value_too_large_for_float32_is_refused_as_infinite() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        Histogram().update(np.array([1e39]))


def test_merging_leaves_the_other_histogram_as_it_was() -> None:
    other = histogram_of(torch.tensor([0.5, 0.25]))
    before = other.to_json()
    histogram_of(torch.tensor([8.0])).merge(other)
    assert other.to_json() == before


def test_range_doubles_and_bins_merge_when_a_larger_value_arrives() -> None:
    histogram = histogram_of(torch.linspace(-1.0, 1.0, 1001))
    assert histogram.limit == 1.0
    fine = histogram.counts.clone()
    histogram.update(torch.tensor([1.5]))
    assert histogram.limit == 2.0
    assert torch.equal(histogram.counts[BINS // 4 : 3 * BINS // 4], fine.view(-1, 2).sum(dim=1))
    assert histogram.total == 1002


def test_every_value_lies_in_its_bin_when_values_are_random() -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 10
    for value in values.tolist():
        histogram = histogram_of(values[:1], torch.tensor([value]))
        width = 2 * histogram.limit / BINS
        centres = histogram.centres()[histogram.counts > 0]
        assert float((centres - value).abs().min()) <= width / 2


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.3, -7.5, 1e-30, -1e-30, 1e30, -3e38, 1e-40, 2.0**-149])
def test_one_value_is_counted_at_any_magnitude(value: float) -> None:
    value = float(torch.tensor(value))  # as float32 holds it
    histogram = histogram_of(torch.full((7, 3), value))
    assert histogram.total == 21
    assert (histogram.minimum, histogram.maximum) == (value, value)
    assert int((histogram.counts > 0).sum()) == 1
    assert histogram.limit >= abs(value)
    # the side of zero survives, even where the product of value and bins per unit underflows
    index = int(histogram.counts.argmax())
    assert (index < BINS // 2) == (value < 0)


def test_tiny_values_stay_on_their_side_when_huge_ones_follow() -> None:
    tiny = torch.tensor([1e-38, -1e-38])
    huge = torch.tensor([1e30])
    assert_same(histogram_of(tiny, huge), histogram_of(huge, tiny))
    assert histogram_of(huge, tiny).counts[BINS // 2 - 1] == 1


def test_negative_values_only_leave_the_positive_side_empty() -> None:
    histogram = histogram_of(-torch.rand(100, generator=torch.Generator().manual_seed(0)) - 0.1)
    assert int(histogram.counts[BINS // 2 :].sum()) == 0
    assert histogram.maximum < 0


def test_nothing_is_counted_when_the_tensor_is_empty() -> None:
    histogram = histogram_of(torch.empty(0, 4))
    assert (histogram.total, histogram.limit) == (0, 0.0)
    filled = histogram_of(torch.tensor([2.0]))
    filled.merge(histogram)
    assert_same(filled, histogram_of(torch.tensor([2.0])))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_update_names_the_problem_when_a_value_is_not_finite(bad: float) -> None:
    histogram = histogram_of(torch.tensor([1.0]))
    with pytest.raises(DataError, match=r"NaN or infinite value\. Check the calibration data and the weights"):
        histogram.update(torch.tensor([0.0, bad, 1.0]))
    assert histogram.total == 1  # nothing of the refused batch was counted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_of_other_float_types_are_counted(dtype: torch.dtype) -> None:
    assert_same(histogram_of(torch.tensor([0.5, -2.0], dtype=dtype)), histogram_of(torch.tensor([0.5, -2.0])))


def test_json_round_trip_keeps_everything() -> None:
    histogram = histogram_of(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    again = Histogram.from_json(json.loads(json.dumps(histogram.to_json())))
    assert_same(histogram, again)
    more = torch.tensor([100.0, -3.0])
    histogram.update(more)
    again.update(more)
    assert_same(histogram, again)


def test_json_of_an_empty_histogram_is_standard_json() -> None:
    text = json.dumps(Histogram().to_json(), allow_nan=False)
    assert_same(Histogram.from_json(json.loads(text)), Histogram())


def test_memory_does_not_grow_with_what_is_seen() -> None:
    histogram = Histogram()
    for power in range(-20, 20):
        histogram.update(torch.randn(2000, generator=torch.Generator().manual_seed(power + 20)) * 10.0**power)
        assert histogram.counts.shape == (BINS,)
        assert histogram.counts.untyped_storage().nbytes() == 8 * BINS
    assert histogram.total == 40 * 2000
