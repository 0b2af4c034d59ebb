from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from edgekd.losses import rkd_angle as module
from edgekd.losses.rkd_angle import rkd_angle


def naive(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Equations 6 to 8, triplet by triplet."""
    triplets = list(itertools.permutations(range(len(student)), 3))
    total = 0.0
    for i, j, k in triplets:
        ours, theirs = (F.cosine_similarity(one[i] - one[j], one[k] - one[j], dim=0) for one in (student, teacher))
        total += F.huber_loss(ours, theirs).item()
    return total / len(triplets)


def test_value_worked_by_hand_for_an_equilateral_and_a_right_triangle():
    # cosines 1/2, 1/2, 1/2 against 0, 1/sqrt 2, 1/sqrt 2: (1/8 + 2 * 0.2071^2 / 2) / 3
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    expected = (1 / 8 + (math.sqrt(0.5) - 0.5) ** 2) / 3
    assert rkd_angle(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_value_equals_the_sum_over_triplets():
    student, teacher = torch.randn(6, 4), torch.randn(6, 9)
    assert rkd_angle(student, teacher).item() == pytest.approx(naive(student, teacher), rel=1e-5)


def test_value_ignores_moves_turns_and_scales():
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    turned = torch.linalg.qr(torch.randn(4, 4))[0]
    torch.testing.assert_close(rkd_angle(5 * student @ turned + 2, teacher), rkd_angle(student, teacher))
    assert rkd_angle(3 * teacher @ turned, teacher).item() == pytest.approx(0, abs=1e-10)


def test_groups_of_vertices_give_the_same_value_and_gradient(monkeypatch):
    student, teacher = torch.randn(7, 4, requires_grad=True), torch.randn(7, 3)
    whole = rkd_angle(student, teacher)
    (expected,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(module, "_LARGEST", 2 * 7 * (4 + 3 + 3 * 7))  # two vertices at a time
    grouped = rkd_angle(student, teacher)
    (gradient,) = torch.autograd.grad(grouped, student)
    torch.testing.assert_close(grouped, whole)
    torch.testing.assert_close(gradient, expected)


def test_value_is_the_same_when_a_far_offset_is_added():
    # products minus norms would lose these digits: the offset is 1000 times the distances
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    torch.testing.assert_close(rkd_angle(student + 1000, teacher), rkd_angle(student, teacher), rtol=1e-3, atol=0)
