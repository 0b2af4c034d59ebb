from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.vid import FLOOR, VID, vid


def made(student: Tensor, teacher: Tensor, **options: object) -> tuple[VID, Step]:
    loss = VID(VID.Options(student_taps=["s"], teacher_taps=["t"], **options))
    logits = torch.zeros(len(student), 2)
    step = Step(
        Outputs(logits, {"s": student}), (Outputs(logits, {"t": teacher}),), logits, torch.arange(len(student)), 0, 0.0
    )
    loss.connect(step.student, step.teacher)
    return loss, step


def test_value_worked_by_hand():
    # channel 1, variance 4: log 2 + (3 - 1)^2 / 8; channel 2, variance 1: 0 + (0 - 1)^2 / 2; mean of the two
    mean, target = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1), torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)
    expected = (math.log(2) + 0.5 + 0.5) / 2
    assert vid(mean, target, torch.tensor([4.0, 1.0])).item() == pytest.approx(expected, abs=1e-6)


def test_value_is_the_negative_log_likelihood_without_its_constant():
    mean, target, variance = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.rand(4) + 0.1
    normal = torch.distributions.Normal(mean, variance.sqrt().view(4, 1, 1).expand_as(mean))
    expected = -normal.log_prob(target).mean() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(vid(mean, target, variance), expected)


def test_best_variance_is_the_mean_squared_error_of_the_channel():
    mean, target = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    variance = (mean - target).square().mean(dim=(0, 2, 3)).requires_grad_()
    vid(mean, target, variance).backward()
    torch.testing.assert_close(variance.grad, torch.zeros(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("variance", [0.01, 0.5, 5.0, 1e4])
def test_every_channel_starts_with_the_asked_variance(variance):
    loss, step = made(torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4), variance=variance)
    expected = vid(loss.predictors[0](step.student.taps["s"]), step.teacher.taps["t"], torch.full((5,), variance))
    torch.testing.assert_close(loss(step), expected, rtol=1e-4, atol=1e-6)


def test_variance_never_falls_below_the_floor():
    loss, step = made(torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4))
    loss.spreads[0].data.fill_(-1e9)
    value = loss(step)
    value.backward()
    expected = vid(loss.predictors[0](step.student.taps["s"]), step.teacher.taps["t"], torch.full((5,), FLOOR))
    torch.testing.assert_close(value, expected)
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_predictor_and_variance_learn():
    torch.manual_seed(0)
    student = torch.randn(8, 4, 3, 3)
    loss, step = made(student, student @ torch.ones(3, 3))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    values, errors = [], []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        values.append(value.item())
        errors.append((loss.predictors[0](student) - step.teacher.taps["t"]).square().mean().item())
    assert values[-1] < 0.9 * values[0]
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("variance", [0.0, 1e-3, float("inf"), float("nan")])
def test_variance_is_refused_when_out_of_range(variance):
    with pytest.raises(ValidationError, match="variance"):
        VID.Options(student_taps=["a"], teacher_taps=["b"], variance=variance)


def test_error_names_the_loss_when_taps_cannot_be_joined():
    with pytest.raises(MismatchError, match="vid cannot join student tap 's'"):
        made(torch.randn(2, 3), torch.randn(2, 3, 4, 4))
