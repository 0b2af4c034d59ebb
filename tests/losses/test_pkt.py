from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from edgekd.losses.pkt import pkt


def naive(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Divergence of the conditional probabilities, pair by pair."""
    size, total = len(student), 0.0
    for i in range(size):
        others = [j for j in range(size) if j != i]
        sides = []
        for one in (student, teacher):
            kernel = [(1 + F.cosine_similarity(one[i], one[j], dim=0).item()) / 2 for j in others]
            sides.append([value / sum(kernel) for value in kernel])
        total += sum(p * math.log(p / q) for q, p in zip(*sides, strict=True))
    return total / (size * (size - 1))


def test_value_worked_by_hand_when_the_teacher_sees_a_right_angle():
    # student all alike: 1/2, 1/2 for each. Teacher x, x, y: kernels 1, 1/2 -> 2/3, 1/3 twice, then 1/2, 1/2
    # 2 (2/3 ln 4/3 + 1/3 ln 2/3) / 6
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    expected = 2 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)) / 6
    assert pkt(torch.ones(3, 4), teacher).item() == pytest.approx(expected, abs=1e-6)


def test_value_equals_the_loop_over_pairs():
    student, teacher = torch.randn(6, 4), torch.randn(6, 9)
    assert pkt(student, teacher).item() == pytest.approx(naive(student, teacher), rel=1e-4)


def test_value_is_finite_when_neighbours_are_opposite():
    student, teacher = torch.tensor([[1.0], [-1.0], [2.0]], requires_grad=True), torch.randn(3, 4)
    for value in (pkt(student, teacher), pkt(teacher.requires_grad_(), student)):
        value.backward()
        assert value.isfinite()
        assert value > 0
    assert student.grad.isfinite().all()
    assert teacher.grad.isfinite().all()


def test_value_is_never_negative_and_keeps_its_digits_when_the_two_nearly_agree():
    teacher = torch.randn(32, 8)
    student = teacher + 1e-2 * torch.randn(32, 8)
    expected = pkt_in_float64(student, teacher)
    assert pkt(student, teacher).item() == pytest.approx(expected, rel=5e-2)
    assert pkt(teacher, teacher).item() == 0


def pkt_in_float64(student: torch.Tensor, teacher: torch.Tensor) -> float:
    sides = []
    for one in (student.double(), teacher.double()):
        kernel = (1 + F.cosine_similarity(one[:, None], one[None], dim=2)) / 2 + 1e-7
        kernel = kernel.masked_fill(torch.eye(len(one), dtype=torch.bool), 0)
        sides.append(kernel / kernel.sum(1, keepdim=True))
    return torch.special.xlogy(sides[1], sides[1] / sides[0]).nan_to_num().sum().item() / (32 * 31)
