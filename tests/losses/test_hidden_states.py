from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.hidden_states import HiddenStates, hidden_states


def made(**options: object) -> HiddenStates:
    return HiddenStates(HiddenStates.Options.model_validate({"student_taps": ["s"], "teacher_taps": ["t"]} | options))


def outputs(**taps: Tensor) -> Outputs:
    return Outputs(torch.zeros(4, 2), taps)


def step(student: Outputs, teacher: Outputs) -> Step:
    return Step(student, (teacher,), torch.zeros(4, 2), torch.arange(4), epoch=0, progress=0.0)


def test_values_worked_by_hand():
    # two tokens: differences (1, 2) and (0, 3), so (1 + 4 + 0 + 9) / 4; angles 0 and 90 degrees, so (0 + 1) / 2
    student = torch.tensor([[[2.0, 4.0], [0.0, 3.0]]])
    assert hidden_states(student, torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])).item() == pytest.approx(3.5)
    target = torch.tensor([[[1.0, 2.0], [5.0, 0.0]]])
    assert hidden_states(student, target, distance="cosine").item() == pytest.approx(0.5, abs=1e-6)


def test_values_equal_the_loop_over_tokens():
    student, teacher = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    squares, angles = [], []
    for b in range(3):
        for n in range(4):
            one, other = student[b, n], teacher[b, n]
            squares.append((one - other).pow(2).sum() / 5)
            angles.append(1 - one @ other / (one.norm() * other.norm()))
    torch.testing.assert_close(hidden_states(student, teacher), torch.stack(squares).mean())
    torch.testing.assert_close(hidden_states(student, teacher, distance="cosine"), torch.stack(angles).mean())


def test_cosine_looks_at_directions_only():
    student, teacher = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    value = hidden_states(student, teacher, distance="cosine")
    torch.testing.assert_close(hidden_states(9 * student, 0.1 * teacher, distance="cosine"), value)
    assert hidden_states(3 * teacher, teacher, distance="cosine").item() == pytest.approx(0, abs=1e-6)
    assert hidden_states(-teacher, teacher, distance="cosine").item() == pytest.approx(2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_cosine_and_gradient_are_finite_when_vectors_are_zero(dtype):
    student = torch.zeros(2, 3, 8, dtype=dtype, requires_grad=True)
    value = hidden_states(student, torch.randn(2, 3, 8), distance="cosine")
    value.backward()
    assert value.item() == 1
    assert student.grad.isfinite().all()


def test_connector_joins_widths_and_learns():
    torch.manual_seed(0)
    # the teacher's vectors are a linear map of the student's: the connector alone can reach zero
    student = torch.randn(4, 5, 3)
    ours, theirs = outputs(s=student), outputs(t=student @ torch.randn(3, 7))
    loss = made()
    assert list(loss.parameters()) == []
    loss.connect(ours, theirs)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(step(ours, theirs))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.05 * values[0]


def test_connector_is_the_identity_at_first_when_widths_agree():
    student, teacher = torch.randn(4, 5, 3), torch.randn(4, 5, 3)
    loss = made()
    loss.connect(outputs(s=student), outputs(t=teacher))
    torch.testing.assert_close(loss(step(outputs(s=student), outputs(t=teacher))), hidden_states(student, teacher))


def test_one_matrix_serves_all_pairs_of_the_same_widths_and_pairs_add_up():
    ours = {f"b.{i}": torch.randn(4, 5, 3) for i in range(2)} | {"e": torch.randn(4, 6)}
    theirs = {f"b.{i}": torch.randn(4, 5, 8) for i in range(4)} | {"e": torch.randn(4, 6)}
    loss = made(student_taps=["e", "b.{}"], teacher_taps=["e", "b.{}"], student_layers=2, teacher_layers=4)
    assert loss.student_taps() == ("e", "b.0", "b.1")
    assert loss.teacher_taps() == ("e", "b.1", "b.3")
    loss.connect(outputs(**ours), outputs(**theirs))
    assert {name: tuple(one.weight.shape) for name, one in loss.connectors.items()} == {
        "6_to_6": (6, 6),
        "3_to_8": (8, 3),
    }
    weight = loss.connectors["3_to_8"].weight
    expected = hidden_states(ours["e"], theirs["e"]) + sum(
        hidden_states(ours[f"b.{i}"] @ weight.T, theirs[f"b.{2 * i + 1}"]) for i in range(2)
    )
    torch.testing.assert_close(loss(step(outputs(**ours), outputs(**theirs))), expected)


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 5, 3), (4, 6, 3)), ((4, 5, 3), (4, 3)), ((4, 3, 5, 5), (4, 3, 5, 5))]
)
def test_error_names_both_taps_and_shapes_when_they_cannot_be_joined(student, teacher):
    with pytest.raises(MismatchError, match=r"student tap 's' of shape \(4, .*teacher tap 't' of shape \(4, .*'hint'"):
        made().connect(outputs(s=torch.zeros(student)), outputs(t=torch.zeros(teacher)))


def test_unknown_distance_is_refused():
    with pytest.raises(ValidationError, match="'mse' or 'cosine'"):
        made(distance="l1")
