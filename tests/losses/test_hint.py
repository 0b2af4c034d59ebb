from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.hint import Hint, hint


def made() -> Hint:
    return Hint(Hint.Options(student_tap="s", teacher_tap="t"))


def outputs(tap: str, *shape: int) -> Outputs:
    return Outputs(torch.zeros(shape[0], 2), {tap: torch.randn(*shape)})


def test_value_worked_by_hand_when_maps_differ_in_size():
    # the student's 2x2 map averages to 2.5, the teacher has 0.5: (2.5 - 0.5)^2 / 2
    student, teacher = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[0.5]]]])
    assert hint(student, teacher).item() == pytest.approx(2.0)
    assert hint(teacher, student).item() == pytest.approx(2.0)


def test_connector_joins_channels_and_is_trained():
    student, teacher = outputs("s", 4, 3, 5, 5), outputs("t", 4, 8, 5, 5)
    loss = made()
    assert list(loss.parameters()) == []
    loss.connect(student, teacher)
    assert isinstance(loss.connector, nn.Conv2d)
    assert loss.connector.weight.shape == (8, 3, 1, 1)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    step = Step(student, (teacher,), torch.zeros(4, 2), torch.arange(4), epoch=0, progress=0.0)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


def test_connector_is_linear_when_taps_are_vectors():
    loss = made()
    loss.connect(outputs("s", 4, 3), outputs("t", 4, 8))
    assert isinstance(loss.connector, nn.Linear)


def test_connector_starts_as_the_identity_when_channels_agree():
    for shape in [(2, 3, 4, 4), (2, 3)]:
        loss, student = made(), outputs("s", *shape)
        loss.connect(student, outputs("t", *shape))
        torch.testing.assert_close(loss.connector(student.taps["s"]), student.taps["s"])


def test_error_names_both_taps_and_shapes_when_they_cannot_be_joined():
    with pytest.raises(
        MismatchError, match=r"student tap 's' of shape \(2, 3\) and teacher tap 't' of shape \(2, 3, 4, 4\)"
    ):
        made().connect(outputs("s", 2, 3), outputs("t", 2, 3, 4, 4))
