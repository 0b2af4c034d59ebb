from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.datasets._splits import check_class_counts, limited, split_indices, split_test
from edgekd.errors import DataError

CLASS_LISTS = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(lambda found: np.array(found, dtype=np.int64))


def test_a_fifth_of_each_class_is_chosen_when_the_classes_divide_evenly() -> None:
    labels = np.array([0] * 10 + [1] * 20)
    rest, chosen = split_indices(labels, 0.2, 0)
    assert np.bincount(labels[chosen]).tolist() == [2, 4]
    assert np.bincount(labels[rest]).tolist() == [8, 16]


@given(labels=CLASS_LISTS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_every_sample_is_in_exactly_one_part(labels: np.ndarray, fraction: float, seed: int) -> None:
    rest, chosen = split_indices(labels, fraction, seed)
    assert sorted([*rest, *chosen]) == list(range(len(labels)))
    for label in np.unique(labels):
        count = int((labels == label).sum())
        taken = int((labels[chosen] == label).sum())
        assert 0 <= taken < count
        assert taken >= 1 or count == 1


def test_a_split_is_the_same_when_made_again_and_another_when_the_seed_changes() -> None:
    labels = np.arange(100) % 4
    assert np.array_equal(split_indices(labels, 0.3, 5)[1], split_indices(labels, 0.3, 5)[1])
    assert not np.array_equal(split_indices(labels, 0.3, 5)[1], split_indices(labels, 0.3, 6)[1])


def test_the_test_split_differs_from_a_validation_split_of_a_common_seed() -> None:
    labels = np.arange(100) % 4
    assert not np.array_equal(split_test(labels, 0.3)[1], split_indices(labels, 0.3, 0)[1])


def test_a_limit_keeps_the_proportions_of_the_classes() -> None:
    labels = np.array([0] * 10 + [1] * 30 + [2] * 60)
    assert np.bincount(labels[limited(labels, 50, seed=0)]).tolist() == [5, 15, 30]


@given(labels=CLASS_LISTS, count=st.integers(6, 100), seed=st.integers(0, 1000))
def test_a_limit_gives_exactly_that_many_and_every_class(labels: np.ndarray, count: int, seed: int) -> None:
    kept = limited(labels, count, seed=seed)
    assert len(set(kept.tolist())) == len(kept) == min(count, len(labels))
    assert set(labels[kept]) == set(labels)


def test_a_limit_keeps_everything_when_it_is_none() -> None:
    assert limited(np.array([0, 1, 1]), None, seed=0).tolist() == [0, 1, 2]


def test_a_limit_below_the_number_of_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"2 samples cannot hold 3 classes\. Ask for at least 3"):
        limited(np.array([0, 1, 2, 2]), 2, seed=0)


def test_small_and_empty_classes_are_named_with_their_counts() -> None:
    with pytest.raises(DataError, match=r"data: every class needs at least 2 samples .* but 'b' has 1, 'c' has 0\."):
        check_class_counts(np.array([0, 0, 1]), ["a", "b", "c"], least=2, source="data")
