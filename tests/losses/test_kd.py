from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses._logits import standardized
from edgekd.losses.kd import KD, kd


def step(student: torch.Tensor, teacher: torch.Tensor) -> Step:
    size = len(student)
    return Step(Outputs(student), (Outputs(teacher),), torch.zeros_like(teacher), torch.arange(size), 0, 0.0)


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


def test_one_temperature_is_the_formula_to_the_last_bit():
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    assert KD(KD.Options())(step(student, teacher)).equal(kd(student, teacher, tau=4.0))
    assert KD(KD.Options(tau=2.0))(step(student, teacher)).equal(kd(student, teacher, tau=2.0))


def test_several_temperatures_are_averaged():
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    value = KD(KD.Options(tau=4.0, more_taus=[1.0, 2.0]))(step(student, teacher))
    expected = sum(kd(student, teacher, tau=tau) for tau in (1.0, 2.0, 4.0)) / 3
    torch.testing.assert_close(value, expected)
    same = KD(KD.Options(tau=4.0, more_taus=[4.0]))(step(student, teacher))
    torch.testing.assert_close(same, kd(student, teacher, tau=4.0))  # the weight does not depend on their number


def test_standardized_value_worked_by_hand():
    # (0, 1, 2) and (4, 2, 0) become (-1, 0, 1) and (1, 0, -1): at tau 1 p = (e, 1, 1/e) / (e + 1 + 1/e) and reversed
    student, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[4.0, 2.0, 0.0]])
    value = KD(KD.Options(tau=1.0, standardize=True))(step(student, teacher))
    expected = 2 * (math.e - 1 / math.e) / (math.e + 1 + 1 / math.e)  # p_1 ln e^2 + p_3 ln e^-2
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_standardized_value_ignores_shift_and_scale_of_either_side():
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    loss = KD(KD.Options(tau=2.0, standardize=True))
    value = loss(step(student, teacher))
    torch.testing.assert_close(value, kd(standardized(student), standardized(teacher), tau=2.0))
    torch.testing.assert_close(loss(step(student * 0.1 - 3, teacher * 20 + 5)), value, atol=1e-5, rtol=1e-4)
    assert loss(step(teacher * 0.1, teacher)).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"standardize": True, "tau": 2.0}, {"more_taus": [1.0, 8.0]}])
def test_learning_reduces_the_loss(changes):
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5)
    loss = KD(KD.Options(**changes))
    optimizer = torch.optim.SGD([student], lr=4.0)
    values = []
    for _ in range(30):
        value = loss(step(student, teacher))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("taus", [[0.0], [2.0, float("nan")]])
def test_more_taus_are_refused_when_not_positive_and_finite(taus):
    with pytest.raises(ValidationError, match="more_taus"):
        KD.Options(more_taus=taus)


def test_one_logit_is_refused_before_training():
    one, two = Outputs(torch.zeros(2, 1)), Outputs(torch.zeros(2, 2))
    KD(KD.Options()).connect(two, two)
    with pytest.raises(MismatchError, match=r"kd takes a softmax.*Use binary_kd"):
        KD(KD.Options()).connect(one, one)
    with pytest.raises(MismatchError, match=r"student \(2, 2\), teacher \(2, 1\)"):
        KD(KD.Options()).connect(two, one)


def test_two_standardized_logits_are_refused_before_training():
    two, three = Outputs(torch.zeros(2, 2)), Outputs(torch.zeros(2, 3))
    KD(KD.Options(standardize=True)).connect(three, three)
    with pytest.raises(MismatchError, match="kd cannot standardize 2 logits"):
        KD(KD.Options(standardize=True)).connect(two, two)


@pytest.mark.parametrize("standardize", [False, True])
def test_several_teachers_are_averaged_after_softening(standardize):
    student, teachers, shares = torch.randn(5, 4), [torch.randn(5, 4), 9 * torch.randn(5, 4)], torch.rand(5, 2)
    shares = shares / shares.sum(1, keepdim=True)
    one = step(student, teachers[0])
    both = replace(one, teachers=[Outputs(teacher) for teacher in teachers], shares=shares)
    ready = standardized if standardize else (lambda logits: logits)
    p = sum(shares[:, [i]] * (ready(teacher) / 2).softmax(1) for i, teacher in enumerate(teachers))
    q = (ready(student) / 2).softmax(1)
    value = KD(KD.Options(tau=2.0, standardize=standardize))(both)
    torch.testing.assert_close(value, 4 * (p * (p / q).log()).sum(1).mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 3000.0])
def test_standardized_value_and_gradient_are_finite_when_half_precision(dtype, scale):
    torch.manual_seed(0)
    student = (torch.randn(4, 10) * scale).to(dtype).requires_grad_()
    teacher = (torch.randn(4, 10) * scale).to(dtype)
    value = KD(KD.Options(tau=2.0, standardize=True))(step(student, teacher))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
