from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.binary_kd import BinaryKD, binary_kd
from edgekd.losses.kd import kd


def step(student: Tensor, teacher: Tensor) -> Step:
    size = len(student)
    return Step(Outputs(student), (Outputs(teacher),), torch.zeros_like(teacher), torch.arange(size), 0, 0.0)


def test_value_worked_by_hand_when_tau_is_2():
    # at tau 2 the teacher's (2 ln 3, -2 ln 3) gives (3/4, 1/4), the student's zeros 1/2: the same KL twice
    teacher, student = torch.tensor([[2 * math.log(3), -2 * math.log(3)]]), torch.zeros(1, 2)
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert binary_kd(student, teacher, tau=2.0).item() == pytest.approx(4 * 2 * one, abs=1e-6)


def test_one_logit_equals_kd_on_two():
    student, teacher = torch.randn(7, 1), torch.randn(7, 1) * 3
    pairs = [torch.cat([one, torch.zeros(7, 1)], 1) for one in (student, teacher)]
    for tau in (1.0, 4.0):
        torch.testing.assert_close(binary_kd(student, teacher, tau=tau), kd(*pairs, tau=tau))


@pytest.mark.parametrize("classes", [1, 2, 6])
def test_value_equals_the_loop_over_bernoullis(classes):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, classes), torch.randn(5, classes)
    looped = sum(
        kl_divergence(Bernoulli(logits=teacher[:, k] / 3), Bernoulli(logits=student[:, k] / 3)) for k in range(classes)
    )
    torch.testing.assert_close(binary_kd(student, teacher, tau=3.0), 9 * looped.mean())


def test_classes_do_not_compete():
    # shifting every logit changes each probability; a softmax would not see it
    student = torch.randn(4, 3)
    assert binary_kd(student + 2, student, tau=1.0).item() > 0.1
    assert kd(student + 2, student, tau=1.0).item() == pytest.approx(0.0, abs=1e-5)


def test_swapping_yes_and_no_changes_nothing():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(binary_kd(-student, -teacher, tau=2.0), binary_kd(student, teacher, tau=2.0))


def test_gradient_is_the_difference_of_probabilities():
    # d/dz tau^2 KL = tau (sigmoid(z_s / tau) - sigmoid(z_t / tau)), per sample
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    binary_kd(student, teacher, tau=2.0).backward()
    expected = 2 * ((student.detach() / 2).sigmoid() - (teacher / 2).sigmoid()) / 4
    torch.testing.assert_close(student.grad, expected)


def test_learning_reduces_the_loss():
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 3, requires_grad=True), torch.randn(8, 3)
    loss = BinaryKD(BinaryKD.Options())
    optimizer = torch.optim.SGD([student], lr=4.0)
    values = []
    for _ in range(20):
        value = loss(step(student, teacher))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


def test_any_number_of_logits_is_taken_when_the_sides_agree():
    sides = [Outputs(torch.zeros(2, classes)) for classes in (1, 2, 6)]
    loss = BinaryKD(BinaryKD.Options())
    for side in sides:
        loss.connect(side, side)
    with pytest.raises(MismatchError, match=r"binary_kd compares logits.*student \(2, 1\), teacher \(2, 2\)"):
        loss.connect(sides[0], sides[1])


def test_tau_is_refused_when_not_positive():
    with pytest.raises(ValidationError, match="tau"):
        BinaryKD.Options(tau=0.0)


def test_several_teachers_are_averaged_as_probabilities():
    student, teachers = torch.randn(5, 3), [torch.randn(5, 3), 9 * torch.randn(5, 3)]
    both = replace(
        step(student, teachers[0]),
        teachers=[Outputs(teacher) for teacher in teachers],
        shares=torch.tensor([[0.25, 0.75]]).repeat(5, 1),
    )
    p, q = 0.25 * (teachers[0] / 2).sigmoid() + 0.75 * (teachers[1] / 2).sigmoid(), (student / 2).sigmoid()
    looped = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(BinaryKD(BinaryKD.Options(tau=2.0))(both), 4 * looped.sum(1).mean(), rtol=1e-4, atol=0)
