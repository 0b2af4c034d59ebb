from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from edgekd.losses._base import Outputs, Step
from edgekd.losses.similarity_preserving import SimilarityPreserving, similarity_preserving


def test_value_worked_by_hand_when_samples_overlap():
    # student rows (1, 0), (1, 1): products [[1, 1], [1, 2]] -> (1, 1)/sqrt 2, (1, 2)/sqrt 5
    # teacher rows 1, 2: products [[1, 2], [2, 4]] -> (1, 2)/sqrt 5 twice
    # only the first rows differ: ((1/sqrt 2 - 1/sqrt 5)^2 + (1/sqrt 2 - 2/sqrt 5)^2) / 4
    a, b, c = 1 / math.sqrt(2), 1 / math.sqrt(5), 2 / math.sqrt(5)
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0], [2.0]])
    expected = ((a - b) ** 2 + (a - c) ** 2) / 4
    assert similarity_preserving(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_value_equals_the_loop_over_samples():
    student, teacher = torch.randn(6, 2, 3, 3), torch.randn(6, 5)
    total = 0.0
    for i in range(6):
        rows = []
        for side in (student, teacher):
            products = torch.stack([(side[i] * side[j]).sum() for j in range(6)])
            rows.append(products / products.norm())
        total += (rows[0] - rows[1]).square().sum().item()
    assert similarity_preserving(student, teacher).item() == pytest.approx(total / 36, rel=1e-5)


def test_value_ignores_turns_of_the_features():
    student, teacher = torch.randn(6, 4), torch.randn(6, 5)
    turned = torch.linalg.qr(torch.randn(4, 4))[0]
    torch.testing.assert_close(
        similarity_preserving(student @ turned, teacher), similarity_preserving(student, teacher)
    )


def test_pairs_are_added():
    student = Outputs(torch.zeros(4, 2), {"a": torch.randn(4, 3), "b": torch.randn(4, 2, 2, 2)})
    teacher = Outputs(torch.zeros(4, 2), {"c": torch.randn(4, 5, 2), "d": torch.randn(4, 6)})
    loss = SimilarityPreserving(SimilarityPreserving.Options(student_taps=["a", "b"], teacher_taps=["c", "d"]))
    value = loss(Step(student, (teacher,), torch.zeros(4, 2), torch.arange(4), 0, 0.0))
    expected = sum(similarity_preserving(student.taps[s], teacher.taps[t]) for s, t in ("ac", "bd"))
    torch.testing.assert_close(value, expected)


def test_taps_must_pair_up():
    with pytest.raises(ValidationError, match="must pair up, got 2 and 1"):
        SimilarityPreserving.Options(student_taps=["a", "b"], teacher_taps=["c"])
