from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.attention import Attention, attention


def test_value_worked_by_hand():
    # energies over channels: student (3^2, 4^2 - too) -> (9, 16) / sqrt(337); teacher (1, 0)
    student = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    teacher = torch.tensor([[[[2.0, 0.0]]]])
    norm = (9**2 + 16**2) ** 0.5
    expected = ((9 / norm - 1) ** 2 + (16 / norm) ** 2) / 2
    assert attention(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_value_equals_the_published_experiments_way():
    student, teacher = torch.randn(3, 4, 5, 5), torch.randn(3, 9, 5, 5)
    maps = [F.normalize(one.pow(2).mean(1).flatten(1)) for one in (student, teacher)]
    torch.testing.assert_close(attention(student, teacher), (maps[0] - maps[1]).pow(2).mean())


def test_value_is_the_same_when_features_are_scaled_or_negated():
    student, teacher = torch.randn(3, 4, 5, 5), torch.randn(3, 9, 5, 5)
    torch.testing.assert_close(attention(-7 * student, teacher), attention(student, 0.01 * teacher))


def test_value_is_bounded_by_two_over_the_positions():
    student, teacher = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    student[0, 0, 0, 0], teacher[0, 0, 1, 1] = 5.0, 3.0
    assert attention(student, teacher).item() == pytest.approx(2 / 4)


def test_value_and_gradient_are_finite_when_features_are_zero():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = attention(student, torch.randn(2, 3, 4, 4))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_larger_map_is_averaged_when_sizes_differ():
    student = torch.randn(2, 3, 8, 8)
    energy = F.adaptive_avg_pool2d(student.pow(2).sum(1, keepdim=True), 4)
    assert attention(student, energy.sqrt()).item() == pytest.approx(0.0, abs=1e-10)


def test_pairs_add_up():
    first, second = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)
    student = Outputs(torch.zeros(2, 2), {"a": first, "b": second})
    teacher = Outputs(torch.zeros(2, 2), {"x": second, "y": first})
    loss = Attention(Attention.Options(student_taps=["a", "b"], teacher_taps=["x", "y"]))
    step = Step(student, (teacher,), torch.zeros(2, 2), torch.arange(2), epoch=0, progress=0.0)
    torch.testing.assert_close(loss(step), attention(first, second) + attention(second, first))


def test_options_are_refused_when_taps_do_not_pair_up():
    with pytest.raises(ValidationError, match="must pair up, got 2 and 1"):
        Attention.Options(student_taps=["a", "b"], teacher_taps=["x"])
    with pytest.raises(ValidationError, match="student_taps"):
        Attention.Options(student_taps=[], teacher_taps=[])


def test_error_names_the_tap_when_it_is_no_map():
    loss = Attention(Attention.Options(student_taps=["a"], teacher_taps=["x"]))
    student = Outputs(torch.zeros(2, 2), {"a": torch.zeros(2, 3)})
    with pytest.raises(MismatchError, match=r"student 'a' has \(2, 3\), teacher 'x' has \(2, 3, 4, 4\)"):
        loss.connect(student, Outputs(torch.zeros(2, 2), {"x": torch.zeros(2, 3, 4, 4)}))
