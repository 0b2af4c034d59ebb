from __future__ import annotations

import pytest
import torch

from edgekd.losses.rkd_distance import rkd_distance


def naive(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Equations 4 to 6, pair by pair."""
    size = len(student)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    sides = []
    for one in (student, teacher):
        distances = [(one[i] - one[j]).norm().item() for i, j in pairs]
        mean = sum(distances) / len(distances)
        sides.append([distance / mean for distance in distances])
    differences = [abs(a - b) for a, b in zip(*sides, strict=True)]
    return sum(0.5 * d**2 if d <= 1 else d - 0.5 for d in differences) / len(pairs)


def test_value_worked_by_hand_when_a_difference_is_in_the_linear_part():
    # student 0, 0.2, 4: distances 0.2, 4, 3.8, mean 8/3 -> 0.075, 1.5, 1.425
    # teacher 0, 2, 2.2: distances 2, 2.2, 0.2, mean 4.4/3 -> 1.363636, 1.5, 0.136364
    # differences 1.288636 (linear: 0.788636), 0, 1.288636: 2 * 0.788636 / 3
    student, teacher = torch.tensor([[0.0], [0.2], [4.0]]), torch.tensor([[0.0], [2.0], [2.2]])
    assert rkd_distance(student, teacher).item() == pytest.approx(0.525758, abs=1e-6)


def test_value_equals_the_sum_over_pairs():
    student, teacher = torch.randn(7, 4), torch.randn(7, 9)
    assert rkd_distance(student, teacher).item() == pytest.approx(naive(student, teacher), rel=1e-5)


def test_value_ignores_moves_turns_and_scales():
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    turned = torch.linalg.qr(torch.randn(4, 4))[0]
    expected = rkd_distance(student, teacher)
    torch.testing.assert_close(rkd_distance(5 * student @ turned + 2, teacher), expected)
    torch.testing.assert_close(rkd_distance(student, teacher @ turned / 7 - 1), expected)
    assert rkd_distance(3 * teacher @ turned, teacher).item() == pytest.approx(0, abs=1e-10)


def test_gradient_is_that_of_finite_differences():
    student = torch.randn(4, 3, dtype=torch.float64).float().requires_grad_()
    teacher = torch.randn(4, 3)
    rkd_distance(student, teacher).backward()
    step = torch.zeros(4, 3)
    step[1, 2] = 1e-2
    with torch.no_grad():
        slope = (rkd_distance(student + step, teacher) - rkd_distance(student - step, teacher)) / 2e-2
    assert student.grad[1, 2].item() == pytest.approx(slope.item(), abs=2e-3)
