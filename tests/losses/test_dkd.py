from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses._logits import standardized
from edgekd.losses.dkd import DKD, dkd
from edgekd.losses.kd import kd


def step(student: Tensor, teacher: Tensor, labels: Tensor, epoch: int = 0) -> Step:
    return Step(Outputs(student), (Outputs(teacher),), labels, torch.arange(len(student)), epoch, 0.0)


def drawn(batch: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(batch, classes), torch.randn(batch, classes), torch.eye(classes)[torch.arange(batch) % classes]


def naive(student: Tensor, teacher: Tensor, classes: Tensor, alpha: float, beta: float, tau: float) -> Tensor:
    """Equations 1 to 7 of the paper, sample by sample, on probabilities."""
    total = torch.zeros((), dtype=torch.float64)
    for z_s, z_t, y in zip(student.double(), teacher.double(), classes.tolist(), strict=True):
        p_s, p_t = (z_s / tau).softmax(0), (z_t / tau).softmax(0)
        others = [k for k in range(len(z_s)) if k != y]
        target = p_t[y] * (p_t[y] / p_s[y]).log() + (1 - p_t[y]) * ((1 - p_t[y]) / (1 - p_s[y])).log()
        q_s, q_t = p_s[others] / p_s[others].sum(), p_t[others] / p_t[others].sum()
        total = total + alpha * target + beta * (q_t * (q_t / q_s).log()).sum()
    return (tau**2 * total / len(student)).float()


def test_value_worked_by_hand_when_tau_is_2():
    # at tau 2 the teacher's (2 ln 6, 2 ln 3, 0) gives (6, 3, 1) / 10, the student's zeros 1/3 each; the target is
    # class 0: b_t = (0.6, 0.4), b_s = (1/3, 2/3); q_t = (3/4, 1/4), q_s = (1/2, 1/2)
    teacher, student = torch.tensor([[2 * math.log(6), 2 * math.log(3), 0.0]]), torch.zeros(1, 3)
    target = 0.6 * math.log(1.8) + 0.4 * math.log(0.6)
    others = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    value = dkd(student, teacher, torch.tensor([[1.0, 0.0, 0.0]]), alpha=1.0, beta=8.0, tau=2.0)
    assert value.item() == pytest.approx(4 * (target + 8 * others), abs=1e-5)


def test_value_equals_the_loop_over_samples():
    student, teacher, labels = drawn()
    value = dkd(student, teacher, labels, alpha=0.7, beta=3.0, tau=2.5)
    torch.testing.assert_close(value, naive(student, teacher, labels.argmax(1), 0.7, 3.0, 2.5))


def test_kd_is_the_special_case_of_beta_as_the_teachers_doubt():
    # equation 6: KD = TCKD + (1 - p_t) NCKD, for one sample
    student, teacher, labels = (one[:1] for one in drawn())
    doubt = 1 - (teacher / 4).softmax(1)[0, 0].item()
    value = dkd(student, teacher, labels, alpha=1.0, beta=doubt, tau=4.0)
    torch.testing.assert_close(value, kd(student, teacher, tau=4.0))


def test_target_is_the_largest_part_of_a_soft_label():
    student, teacher, labels = drawn()
    hard = dkd(student, teacher, labels, alpha=1.0, beta=8.0, tau=4.0)
    smooth = labels * 0.9 + 0.1 / 5
    mixed = 0.6 * labels + 0.4 * labels.flip(0)
    for soft in (smooth, mixed):
        torch.testing.assert_close(dkd(student, teacher, soft, alpha=1.0, beta=8.0, tau=4.0), hard)


def test_value_and_gradient_are_finite_when_the_target_has_all_the_probability():
    # a softmax sums to 1 - p = 0 here, whose log is -inf
    student = torch.tensor([[200.0, 0.0, 1.0], [-200.0, 0.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 1.0, 0.0], [200.0, 1.0, 0.0]])
    value = dkd(student, teacher, torch.tensor([[1.0, 0.0, 0.0]] * 2), alpha=1.0, beta=8.0, tau=1.0)
    value.backward()
    # the one side has the target at 1, the other at e^-200: with r = ln(1 + e) the rest's log sum, sample 1 counts
    # 200 - r for the target, sample 2 counts 200 + r; the others are (e, 1) / (e + 1) against their reverse
    others = (math.e - 1) / (math.e + 1)
    assert value.item() == pytest.approx(200 + 8 * others, abs=1e-3)
    assert student.grad.isfinite().all()


def test_warmup_grows_linearly_to_the_full_term():
    student, teacher, labels = drawn()
    full = dkd(student, teacher, labels, alpha=1.0, beta=8.0, tau=4.0)
    loss = DKD(DKD.Options())
    for epoch, share in [(0, 1 / 20), (9, 0.5), (19, 1.0), (200, 1.0)]:
        torch.testing.assert_close(loss(step(student, teacher, labels, epoch)), full * share)
    torch.testing.assert_close(DKD(DKD.Options(warmup_epochs=0))(step(student, teacher, labels)), full)


def test_standardize_is_the_formula_on_standardized_logits():
    student, teacher, labels = drawn()
    loss = DKD(DKD.Options(tau=2.0, standardize=True, warmup_epochs=0))
    expected = dkd(standardized(student), standardized(teacher), labels, alpha=1.0, beta=8.0, tau=2.0)
    torch.testing.assert_close(loss(step(student, teacher, labels)), expected)


def test_learning_reduces_the_loss():
    student, teacher, labels = drawn()
    student.requires_grad_()
    loss = DKD(DKD.Options(warmup_epochs=0))
    optimizer = torch.optim.SGD([student], lr=0.2)
    values = []
    for _ in range(20):
        value = loss(step(student, teacher, labels))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize(
    ("classes", "message"), [(1, "Use binary_kd"), (2, "dkd needs three classes or more, got 2.*kd")]
)
def test_too_few_classes_are_refused_before_training(classes, message):
    side = Outputs(torch.zeros(2, classes))
    with pytest.raises(MismatchError, match=message):
        DKD(DKD.Options()).connect(side, side)


def test_two_standardized_logits_are_refused_before_training():
    side = Outputs(torch.zeros(2, 2))
    with pytest.raises(MismatchError, match="dkd cannot standardize 2 logits"):
        DKD(DKD.Options(standardize=True)).connect(side, side)
    three = Outputs(torch.zeros(2, 3))
    DKD(DKD.Options(standardize=True)).connect(three, three)


def test_options_are_refused_when_they_make_no_sense():
    with pytest.raises(ValidationError, match="alpha and beta are both 0"):
        DKD.Options(alpha=0.0, beta=0.0)
    with pytest.raises(ValidationError, match="warmup_epochs"):
        DKD.Options(warmup_epochs=-1)


def test_several_teachers_are_averaged_after_softening():
    student, first, labels = drawn()
    teachers = [first, 9 * first.flip(0)]
    both = replace(
        step(student, first, labels),
        teachers=[Outputs(teacher) for teacher in teachers],
        shares=torch.tensor([[0.25, 0.75]]).repeat(6, 1),
    )
    mean = 0.25 * (teachers[0] / 4).softmax(1) + 0.75 * (teachers[1] / 4).softmax(1)
    expected = dkd(student, 4 * mean.log(), labels, alpha=1.0, beta=8.0, tau=4.0)
    torch.testing.assert_close(DKD(DKD.Options(warmup_epochs=0))(both), expected)
