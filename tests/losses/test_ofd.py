from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.ofd import OFD, margin_from_batch_norm, ofd


def made(student: Tensor, teacher: Tensor, *, pairs: int = 1, **options: object) -> tuple[OFD, Step]:
    names = [str(one) for one in range(pairs)]
    loss = OFD(OFD.Options(student_taps=names, teacher_taps=names, **options))
    return connected(loss, student, teacher, names)


def connected(loss: OFD, student: Tensor, teacher: Tensor, names: list[str]) -> tuple[OFD, Step]:
    logits = torch.zeros(len(student), 2)
    sides = [Outputs(logits, dict.fromkeys(names, one)) for one in (student, teacher)]
    loss.connect(sides[0], sides[1])
    return loss, Step(sides[0], (sides[1],), logits, torch.arange(len(student)), epoch=0, progress=0.0)


def test_value_worked_by_hand():
    # margin -1. teacher 2: (3 - 2)^2 = 1; teacher -0.5, student above it: (0.5 + 0.5)^2 = 1; student below it: 0;
    # teacher -4 becomes -1: (0 + 1)^2 = 1; student at -2, below -1: 0. Sum 3 in a batch of 1
    student = torch.tensor([3.0, 0.5, -0.7, 0.0, -2.0]).view(1, 1, 1, 5)
    teacher = torch.tensor([2.0, -0.5, -0.5, -4.0, -4.0]).view(1, 1, 1, 5)
    assert ofd(student, teacher, torch.tensor([-1.0])).item() == pytest.approx(3.0)
    assert ofd(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1), torch.tensor([-1.0])).item() == pytest.approx(3)


def test_value_equals_the_loop_over_positions():
    student, teacher, margin = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), -torch.rand(3)
    total = 0.0
    for sample in range(2):
        for channel in range(3):
            for s, t in zip(student[sample, channel].flatten(), teacher[sample, channel].flatten(), strict=True):
                target = max(t.item(), margin[channel].item())
                total += 0.0 if s.item() <= target <= 0 else (s.item() - target) ** 2
    assert ofd(student, teacher, margin).item() == pytest.approx(total / 2, rel=1e-5)


def test_gradient_is_zero_where_both_sides_are_cut_by_the_relu():
    student = torch.tensor([-1.0, -1.0]).view(1, 1, 1, 2).requires_grad_()
    ofd(student, torch.tensor([-0.5, 0.5]).view(1, 1, 1, 2), torch.tensor([-0.8])).backward()
    assert student.grad.flatten().tolist() == [0.0, 2 * (-1.0 - 0.5)]


def test_margin_formula_is_the_expectation_of_negative_responses():
    gamma, beta = torch.tensor([1.0, -0.5, 2.0, 1.0]), torch.tensor([0.0, 0.3, -1.0, 1.5])
    maps = torch.randn(100, 4, 50, 50) * gamma[:, None, None].abs() + beta[:, None, None]
    empirical = torch.stack([channel[channel < 0].mean() for channel in maps.unbind(1)])
    # 250 000 values a channel, at least 6 % of them below 0: the standard error is below 0.005
    torch.testing.assert_close(margin_from_batch_norm(gamma, beta), empirical, atol=0.02, rtol=0)
    loss, step = made(torch.randn(100, 2, 50, 50), maps)
    loss(step)
    torch.testing.assert_close(loss.margins[0](maps), empirical, atol=1e-4, rtol=1e-4)


def test_margin_formula_when_channels_are_extreme():
    # beta / gamma: never negative (-gamma^2 / beta), always negative (beta), constant (beta, at most 0)
    gamma = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    beta = torch.tensor([1e3, 9.9e3, 1.1e4, -1e3, 2.0, -2.0, 0.0])
    expected = torch.tensor([-1e-3, -1 / 9.9e3, -1 / 1.1e4, -1e3, 0.0, -2.0, 0.0])
    torch.testing.assert_close(margin_from_batch_norm(gamma, beta), expected, rtol=1e-3, atol=1e-12)
    assert margin_from_batch_norm(torch.tensor([1.0]), torch.tensor([3.0])).item() == pytest.approx(
        3 - math.exp(-4.5) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(3 / math.sqrt(2))), rel=1e-5
    )


def test_margins_are_learned_for_margin_steps_and_kept_in_the_state():
    first, second, third = (torch.tensor(value).view(1, 1, 1, 1) for value in (-1.0, -3.0, -50.0))
    loss, _ = made(torch.randn(1, 1, 1, 1), first, margin_steps=2)
    margin = loss.margins[0]
    found = [margin(one).item() for one in (first, second, third)]
    assert found == [-1.0, -2.0, -2.0]
    again, _ = made(torch.randn(1, 1, 1, 1), first, margin_steps=2)
    again.load_state_dict(loss.state_dict())
    assert again.margins[0](third).item() == -2.0
    part, _ = made(torch.randn(1, 1, 1, 1), first, margin_steps=2)
    part.margins[0](first)
    resumed, _ = made(torch.randn(1, 1, 1, 1), first, margin_steps=2)
    resumed.load_state_dict(part.state_dict())
    assert [resumed.margins[0](one).item() for one in (second, third)] == [-2.0, -2.0]


def test_margins_do_not_move_when_only_evaluated_and_are_zero_without_negative_values():
    loss, _ = made(torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2))
    loss.eval()
    assert loss.margins[0](-torch.ones(2, 1, 2, 2)).item() == 0.0
    loss.train()
    assert loss.margins[0](torch.ones(2, 1, 2, 2)).item() == 0.0


def test_margins_are_of_the_whole_batch_when_processes_share_it(monkeypatch):
    loss, _ = made(torch.randn(2, 1, 1, 1), torch.randn(2, 1, 1, 1))
    # the other process saw two negative values with a sum of -5
    monkeypatch.setattr("edgekd.losses.ofd.gathered", lambda row: torch.cat([row, torch.tensor([[[-5.0], [2.0]]])]))
    assert loss.margins[0](torch.tensor([-1.0, 4.0]).view(2, 1, 1, 1)).item() == -2.0


def test_deeper_pairs_count_twice_as_much():
    student, teacher = torch.randn(3, 2, 4, 4), torch.randn(3, 5, 4, 4)
    one, step = made(student, teacher)
    three, steps = made(student, teacher, pairs=3)
    for connector in three.connectors:
        connector.load_state_dict(one.connectors[0].state_dict())
    torch.testing.assert_close(three(steps), one(step) * (1 + 0.5 + 0.25))


def test_connector_learns():
    teacher = torch.randn(8, 6, 3, 3)
    loss, step = made(torch.randn(8, 4, 3, 3), teacher)
    assert isinstance(loss.connectors[0][0], nn.Conv2d)
    optimizer = torch.optim.SGD(loss.parameters(), lr=2e-3)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


def test_error_names_the_loss_when_taps_cannot_be_joined():
    with pytest.raises(MismatchError, match="ofd cannot join student tap '0'"):
        made(torch.randn(2, 3), torch.randn(2, 3, 4, 4))
