"""From probabilities, top-k answers and labels to logits."""

from __future__ import annotations

import math

import pytest
import torch

from edgekd.errors import MismatchError
from edgekd.models._answers import (
    check_finite,
    check_labels,
    check_probabilities,
    check_top_k,
    logits_from_labels,
    logits_from_probabilities,
    logits_from_top_k,
)


def test_top_k_leaves_what_is_missing_to_the_others_evenly():
    # by hand: 0.6 and 0.3 are given, 0.1 is left for two other classes
    logits = logits_from_top_k(torch.tensor([[2, 0]]), torch.tensor([[0.6, 0.3]]), 4)
    assert logits.exp()[0].tolist() == pytest.approx([0.3, 0.05, 0.6, 0.05])
    assert torch.softmax(logits, dim=1)[0].tolist() == pytest.approx([0.3, 0.05, 0.6, 0.05])


def test_top_k_of_all_classes_is_the_distribution():
    values = torch.tensor([[0.5, 0.2, 0.3]])
    logits = logits_from_top_k(torch.tensor([[1, 0, 2]]), values, 3)
    torch.testing.assert_close(logits, logits_from_probabilities(torch.tensor([[0.2, 0.5, 0.3]])))


def test_label_gets_the_confidence():
    logits = logits_from_labels(torch.tensor([1]), 3, 0.9)
    assert logits.exp()[0].tolist() == pytest.approx([0.05, 0.9, 0.05])
    assert logits[0, 1] == pytest.approx(math.log(0.9))


def test_label_equals_its_top_one():
    labels = torch.tensor([0, 3])
    torch.testing.assert_close(
        logits_from_labels(labels, 4, 0.7), logits_from_top_k(labels[:, None], torch.full((2, 1), 0.7), 4)
    )


def test_probability_of_zero_stays_finite():
    assert logits_from_probabilities(torch.tensor([[1.0, 0.0]])).isfinite().all()


@pytest.mark.parametrize(
    ("indices", "values", "message"),
    [
        ([[0, 0]], [[0.5, 0.5]], "stands twice"),
        ([[0, 4]], [[0.5, 0.5]], r"classes run from 0 to 4, the data has 4 \(0 to 3\)"),
        ([[0, 1]], [[0.5, 0.6]], "sum is at most 1, got values from 0.5 and a sum of 1.1"),
        ([[0, 1]], [[0.5, -0.1]], "values = 'log_probabilities'"),
        ([[0, 1]], [[0.5, math.nan]], r"NaN or infinity for 1 of 1 samples \(first: row 0\)"),
        ([[0, 1]], [[0.5]], r"must both be \(B, k\) with k from 1 to 4, got \(1, 2\) and \(1, 1\)"),
        ([[0.0, 1.0]], [[0.5, 0.5]], "classes must be integers, got float32"),
    ],
)
def test_top_k_is_refused_when_it_is_no_part_of_a_distribution(indices, values, message):
    with pytest.raises(MismatchError, match=f"^it: .*{message}|^it: {message}"):
        check_top_k(torch.tensor(indices), torch.tensor(values), 4, "it")


def test_probabilities_are_refused_when_they_do_not_sum_to_one():
    check_probabilities(torch.tensor([[0.25, 0.7501]]), "it")
    with pytest.raises(MismatchError, match=r"it: rows must be probabilities .* sums from 3 to 3. If they are logits"):
        check_probabilities(torch.tensor([[1.0, 2.0]]), "it")


def test_labels_are_refused_when_they_are_not_one_class_each():
    with pytest.raises(MismatchError, match=r"labels must be \(B,\), got \(1, 2\)"):
        check_labels(torch.tensor([[0, 1]]), 3, "it")
    with pytest.raises(MismatchError, match="classes run from -1 to 0"):
        check_labels(torch.tensor([0, -1]), 3, "it")


def test_numbers_are_refused_when_they_are_not_floats():
    with pytest.raises(MismatchError, match="it must be floats, got int64"):
        check_finite(torch.tensor([1]), "it")
