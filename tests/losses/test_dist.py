from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import edgekd.losses.dist as module
from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.dist import DIST, dist


def step(student: Tensor, teacher: Tensor) -> Step:
    size = len(student)
    return Step(Outputs(student), (Outputs(teacher),), torch.zeros_like(teacher), torch.arange(size), 0, 0.0)


def naive(student: Tensor, teacher: Tensor, tau: float) -> tuple[float, float]:
    """1 - Pearson's correlation by numpy, one row and one column at a time."""
    ours, theirs = ((one.double() / tau).softmax(1).numpy() for one in (student, teacher))
    rows = [1 - np.corrcoef(one, other)[0, 1] for one, other in zip(ours, theirs, strict=True)]
    columns = [1 - np.corrcoef(one, other)[0, 1] for one, other in zip(ours.T, theirs.T, strict=True)]
    return float(np.mean(rows)), float(np.mean(columns))


def test_value_worked_by_hand():
    # rows of probabilities: teacher (5, 3, 2) / 10 and (2, 5, 3) / 10, student (3, 5, 2) / 10 and (2, 5, 3) / 10
    teacher = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]]).log()
    student = torch.tensor([[0.3, 0.5, 0.2], [0.2, 0.5, 0.3]]).log()
    # row 1 centred, times 30: (5, -1, -4) and (-1, 5, -4), both of squared length 42: r = (-5 - 5 + 16) / 42 = 1 / 7;
    # row 2 is the same on both sides: r = 1; mean of 1 - r: 3 / 7
    between = dist(student, teacher, beta=1.0, gamma=0.0, tau=1.0)
    assert between.item() == pytest.approx(3 / 7, abs=1e-5)
    # columns: (5, 2) and (3, 2) fall on both sides, r = 1; (3, 5) rises where the student's (5, 5) does not move,
    # a vector of length 0 against one of length 1 counts 1/2; (2, 3) and (2, 3): r = 1; mean of 0, 1/2, 0: 1 / 6
    within = dist(student, teacher, beta=0.0, gamma=1.0, tau=1.0)
    assert within.item() == pytest.approx(1 / 6, abs=1e-5)


def test_value_equals_the_loop_over_rows_and_columns():
    torch.manual_seed(0)
    student, teacher = torch.randn(7, 5), torch.randn(7, 5)
    rows, columns = naive(student, teacher, 2.0)
    value = dist(student, teacher, beta=0.7, gamma=3.0, tau=2.0).item()
    assert value == pytest.approx(4 * (0.7 * rows + 3.0 * columns), rel=1e-4)  # 1e-8 beside squared lengths


def test_default_weights_are_the_papers():
    torch.manual_seed(0)
    student, teacher = torch.randn(7, 5), torch.randn(7, 5)
    torch.testing.assert_close(
        DIST(DIST.Options())(step(student, teacher)), dist(student, teacher, beta=2, gamma=2, tau=4)
    )


def test_relation_between_classes_ignores_scale_and_shift_of_probabilities():
    teacher = torch.tensor([[0.6, 0.3, 0.1]])
    student = 0.5 * teacher + 0.5 / 3  # still probabilities: less sure, in the same order and proportion
    assert dist(student.log(), teacher.log(), beta=1.0, gamma=1.0, tau=1.0).item() == pytest.approx(0.0, abs=1e-6)


def test_opposite_preferences_give_the_largest_value():
    teacher = torch.tensor([[0.5, 0.3, 0.1 + 0.1]])
    student = 2 / 3 - teacher
    assert dist(student.log(), teacher.log(), beta=1.0, gamma=0.0, tau=1.0).item() == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 3000.0])
def test_value_and_gradient_are_finite_when_vectors_have_no_variance(scale):
    # equal logits give equal probabilities; huge ones give classes that no sample of the batch may be
    torch.manual_seed(0)
    student, teacher = (torch.randn(3, 10) * scale).requires_grad_(), torch.randn(3, 10)
    value = dist(student, teacher, beta=2.0, gamma=2.0, tau=1.0)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    same = dist(teacher * scale, teacher * scale, beta=2.0, gamma=2.0, tau=1.0)
    assert same.item() == 0


def test_flat_student_still_learns():
    student = torch.zeros(3, 4, requires_grad=True)
    dist(student, torch.randn(3, 4), beta=2.0, gamma=2.0, tau=1.0).backward()
    assert student.grad.abs().sum() > 0


def test_one_sample_has_no_relation_within_a_class():
    assert dist(torch.randn(1, 4), torch.randn(1, 4), beta=0.0, gamma=1.0, tau=1.0).item() == 0


def test_samples_of_every_process_count(monkeypatch):
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5), torch.randn(8, 5)
    rest = iter([student[4:], teacher[4:]])
    monkeypatch.setattr(module, "gathered", lambda values: torch.cat([values, next(rest)]))
    value = DIST(DIST.Options())(step(student[:4], teacher[:4]))
    torch.testing.assert_close(value, dist(student, teacher, beta=2.0, gamma=2.0, tau=4.0))


def test_learning_reduces_the_loss():
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5)
    loss = DIST(DIST.Options(tau=1.0))
    optimizer = torch.optim.SGD([student], lr=1.0)
    values = []
    for _ in range(20):
        value = loss(step(student, teacher))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize(
    ("classes", "message"), [(1, "Use binary_kd"), (2, r"dist needs three classes.*\+1 or -1.*Use kd")]
)
def test_too_few_classes_are_refused_before_training(classes, message):
    side, three = Outputs(torch.zeros(2, classes)), Outputs(torch.zeros(2, 3))
    with pytest.raises(MismatchError, match=message):
        DIST(DIST.Options()).connect(side, side)
    DIST(DIST.Options()).connect(three, three)


def test_options_are_refused_when_nothing_would_be_learned():
    with pytest.raises(ValidationError, match="beta and gamma are both 0"):
        DIST.Options(beta=0.0, gamma=0.0)


def test_several_teachers_are_averaged_after_softening():
    student, teachers = torch.randn(5, 4), [torch.randn(5, 4), 9 * torch.randn(5, 4)]
    both = replace(
        step(student, teachers[0]),
        teachers=[Outputs(teacher) for teacher in teachers],
        shares=torch.tensor([[0.25, 0.75]]).repeat(5, 1),
    )
    mean = 0.25 * (teachers[0] / 4).softmax(1) + 0.75 * (teachers[1] / 4).softmax(1)
    expected = dist(student, 4 * mean.log(), beta=2.0, gamma=2.0, tau=4.0)
    torch.testing.assert_close(DIST(DIST.Options())(both), expected)
