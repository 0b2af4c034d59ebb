from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.kd import kd
from edgekd.losses.mse_logits import MSELogits, mse_logits


def step(student: Tensor, teacher: Tensor) -> Step:
    size = len(student)
    return Step(Outputs(student), (Outputs(teacher),), torch.zeros_like(teacher), torch.arange(size), 0, 0.0)


def test_value_worked_by_hand():
    # sample 1: (1 + 4 + 0) / 3, sample 2: (0 + 0 + 9) / 3; mean 14 / 6
    student = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    teacher = torch.tensor([[2.0, 0.0, 3.0], [0.0, 0.0, -3.0]])
    assert mse_logits(student, teacher).item() == pytest.approx(14 / 6)


def test_value_equals_the_loop_over_samples():
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    looped = sum(
        sum((s - t) ** 2 for s, t in zip(*pair, strict=True)) / 4 for pair in zip(student, teacher, strict=True)
    )
    torch.testing.assert_close(mse_logits(student, teacher), looped / 5)


def test_half_of_it_is_the_limit_of_kd_when_tau_grows():
    # Kim et al. 2021: for logits of mean zero tau^2 KL tends to |z_s - z_t|^2 / 2K
    torch.manual_seed(0)
    student, teacher = (one - one.mean(1, keepdim=True) for one in (torch.randn(6, 10), torch.randn(6, 10)))
    limit = kd(student.double().float(), teacher, tau=100.0)
    torch.testing.assert_close(0.5 * mse_logits(student, teacher), limit, rtol=2e-2, atol=0)


def test_standardized_value_is_one_minus_the_correlation():
    # deviation 1 over K - 1: |Z|^2 = K - 1, so the mean square is 2 (K - 1) (1 - r) / K
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 10), torch.randn(1, 10)
    correlation = torch.corrcoef(torch.cat([student, teacher]))[0, 1]
    loss = MSELogits(MSELogits.Options(standardize=True))
    value = loss(step(student, teacher))
    torch.testing.assert_close(value, 2 * 9 / 10 * (1 - correlation), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss(step(student * 9 + 1, teacher)), value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("standardize", [False, True])
def test_learning_reduces_the_loss(standardize):
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5)
    loss = MSELogits(MSELogits.Options(standardize=standardize))
    optimizer = torch.optim.SGD([student], lr=4.0)
    values = []
    for _ in range(20):
        value = loss(step(student, teacher))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


def test_sides_that_disagree_are_refused_before_training():
    one, two = Outputs(torch.zeros(2, 1)), Outputs(torch.zeros(2, 2))
    MSELogits(MSELogits.Options()).connect(one, one)  # one logit can be matched without a softmax
    with pytest.raises(MismatchError, match=r"mse_logits compares logits.*student \(2, 1\), teacher \(2, 2\)"):
        MSELogits(MSELogits.Options()).connect(one, two)


@pytest.mark.parametrize("classes", [1, 2])
def test_few_standardized_logits_are_refused_before_training(classes):
    side = Outputs(torch.zeros(2, classes))
    with pytest.raises(MismatchError, match=f"mse_logits cannot standardize {classes} logits"):
        MSELogits(MSELogits.Options(standardize=True)).connect(side, side)


def test_several_teachers_are_averaged_as_logits():
    student, teachers = torch.randn(5, 4), [torch.randn(5, 4), torch.randn(5, 4)]
    both = replace(
        step(student, teachers[0]),
        teachers=[Outputs(teacher) for teacher in teachers],
        shares=torch.tensor([[0.25, 0.75]]).repeat(5, 1),
    )
    expected = mse_logits(student, 0.25 * teachers[0] + 0.75 * teachers[1])
    torch.testing.assert_close(MSELogits(MSELogits.Options())(both), expected)
