from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from edgekd.losses.correlation_congruence import CorrelationCongruence, correlation_congruence


def test_value_worked_by_hand_for_a_right_angle_and_a_half_one():
    # gamma 0.4, P 2: k(c) = exp(-0.8) (1 + 0.8 c + 0.32 c^2); student c = 0, teacher c = cos 60 = 1/2
    # k(1/2) - k(0) = exp(-0.8) (0.4 + 0.08); 2 of the 4 entries
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    expected = 2 * (math.exp(-0.8) * 0.48) ** 2 / 4
    assert correlation_congruence(student, teacher).item() == pytest.approx(expected, abs=1e-7)


def test_value_equals_the_loop_over_pairs():
    student, teacher = F.normalize(torch.randn(5, 3)), F.normalize(torch.randn(5, 7))
    total = 0.0
    for i in range(5):
        for j in range(5):
            kernels = [
                math.exp(-2 * 0.7) * sum((2 * 0.7 * float(one[i] @ one[j])) ** p / math.factorial(p) for p in range(4))
                for one in (student, teacher)
            ]
            total += (kernels[0] - kernels[1]) ** 2
    value = correlation_congruence(student, teacher, gamma=0.7, order=3)
    assert value.item() == pytest.approx(total / 25, rel=1e-5)


def test_value_tends_to_the_gaussian_kernel_when_the_order_grows():
    student, teacher = F.normalize(torch.randn(5, 3)), F.normalize(torch.randn(5, 3))
    ours, theirs = (torch.exp(-0.5 * torch.cdist(one, one).square()) for one in (student, teacher))
    value = correlation_congruence(student, teacher, gamma=0.5, order=16)
    torch.testing.assert_close(value, F.mse_loss(ours, theirs))


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"gamma": float("inf")}, {"order": 0}])
def test_kernel_is_refused_when_it_is_none(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        CorrelationCongruence.Options(student_tap="s", teacher_tap="t", **options)
