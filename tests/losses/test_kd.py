from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from edgekd.losses.kd import KD, kd


def test_value_worked_by_hand_when_tau_is_2():
    # at tau 2 the teacher's (2 ln 3, 0) gives (3/4, 1/4), the student's zeros (1/2, 1/2)
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kd(student, teacher, tau=2.0).item() == pytest.approx(expected, abs=1e-6)


def test_value_does_not_shrink_when_a_batch_or_impossible_classes_are_added():
    student, teacher = torch.randn(1, 3), torch.randn(1, 3)
    one = kd(student, teacher, tau=3.0)
    torch.testing.assert_close(kd(student.repeat(7, 1), teacher.repeat(7, 1), tau=3.0), one)
    padding = torch.full((1, 97), -1e4)
    wide = kd(torch.cat([student, padding], 1), torch.cat([teacher, padding], 1), tau=3.0)
    torch.testing.assert_close(wide, one)  # a mean over classes as well would divide by 100 here and by 3 above


def test_value_equals_the_sum_over_probabilities():
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
    torch.testing.assert_close(kd(student, teacher, tau=4.0), 16 * (p * (p / q).log()).sum(1).mean())


def test_gradient_is_the_logit_difference_over_classes_when_tau_is_large():
    # Hinton et al. 2015, equation 4: for zero-mean logits the gradient tends to (z_s - z_t) / K, per sample
    student = torch.tensor([[0.5, -0.2, -0.3]], requires_grad=True)
    teacher = torch.tensor([[-0.1, 0.4, -0.3]])
    kd(student, teacher, tau=200.0).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3, atol=2e-3, rtol=0)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("inf"), float("nan")])
def test_tau_is_refused_when_not_positive_and_finite(tau):
    with pytest.raises(ValidationError, match="tau"):
        KD.Options(tau=tau)
