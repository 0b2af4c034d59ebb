from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.ab import AB, ab


def made(student: Tensor, teacher: Tensor, *, pairs: int = 1, **options: object) -> AB:
    names = [str(one) for one in range(pairs)]
    loss = AB(AB.Options(student_taps=names, teacher_taps=names, **options))
    given = step(student, teacher, pairs=pairs)
    loss.connect(given.student, given.teacher)
    return loss


def step(student: Tensor, teacher: Tensor, *, pairs: int = 1, progress: float = 0.0) -> Step:
    logits = torch.zeros(len(student), 2, requires_grad=True)
    sides = [Outputs(logits, {str(name): one for name in range(pairs)}) for one in (student, teacher)]
    return Step(sides[0], (sides[1],), logits, torch.arange(len(student)), epoch=0, progress=progress)


def test_value_worked_by_hand():
    # margin 2. fires: (2 - 0.5)^2 = 2.25 and (2 + 1)^2 = 9; does not: (2 + 0.5)^2 = 6.25 and, at -3, 0.
    # a teacher at exactly 0 does not fire: (2 + 0)^2 = 4. Sum 21.5, two samples
    student = torch.tensor([0.5, -1.0, 0.5, -3.0, 0.0]).view(1, 5, 1, 1).repeat(2, 1, 1, 1)
    teacher = torch.tensor([0.1, 7.0, -0.1, -0.1, 0.0]).view(1, 5, 1, 1).repeat(2, 1, 1, 1)
    assert ab(student, teacher, margin=2.0).item() == pytest.approx(21.5)


def test_value_equals_the_formula_of_the_paper():
    student, teacher = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    fires = (teacher > 0).float()
    expected = fires * (1 - student).clamp_min(0) + (1 - fires) * (1 + student).clamp_min(0)
    torch.testing.assert_close(ab(student, teacher, margin=1.0), expected.square().sum() / 3)


def test_strength_of_the_teacher_makes_no_difference_and_far_sides_are_flat():
    student, teacher = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(ab(student, teacher * 100, margin=1.0), ab(student, teacher, margin=1.0))
    settled = (teacher.sign() * 1.5).requires_grad_()
    value = ab(settled, teacher, margin=1.0)
    value.backward()
    assert value.item() == 0.0
    assert settled.grad.abs().max().item() == 0.0


def test_connector_is_there_only_when_channels_differ():
    assert isinstance(made(torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)).connectors[0], nn.Sequential)
    same = made(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    assert list(same.parameters()) == []
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(same(step(student, teacher)), ab(student, teacher, margin=1.0))


def test_deeper_pairs_count_twice_as_much():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    three = made(student, teacher, pairs=3)(step(student, teacher, pairs=3))
    torch.testing.assert_close(three, ab(student, teacher, margin=1.0) * 1.75)


@pytest.mark.parametrize(("progress", "ended"), [(0.0, False), (0.29, False), (0.3, True), (0.9, True)])
def test_term_is_zero_after_until_and_still_has_a_gradient_for_every_connector(progress, ended):
    student, teacher = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, 4, 4)
    loss = made(student, teacher, until=0.3)
    value = loss(step(student, teacher, progress=progress))
    value.backward()
    assert (value.item() == 0) == ended
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert all((parameter.grad.abs().max() == 0) == ended for parameter in loss.connectors[0][1].parameters())


def test_term_can_be_alone_after_until_when_there_is_no_connector():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    made(student, teacher, until=0.5)(step(student, teacher, progress=0.5)).backward()


def test_connector_and_student_learn():
    student, teacher = torch.randn(8, 4, 3, 3, requires_grad=True), torch.randn(8, 6, 3, 3)
    loss = made(student, teacher)
    optimizer = torch.optim.SGD([student, *loss.parameters()], lr=0.01)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(step(student, teacher))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("options", [{"margin": 0.0}, {"margin": float("inf")}, {"until": 1.1}, {"until": -0.1}])
def test_options_are_refused_when_out_of_range(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        AB.Options(student_taps=["a"], teacher_taps=["b"], **options)


def test_error_names_the_loss_when_taps_cannot_be_joined():
    with pytest.raises(MismatchError, match="ab cannot join student tap '0'"):
        made(torch.randn(2, 3), torch.randn(2, 3, 4, 4))
