from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.multi_head_graph import MultiHeadGraph, dominant, multi_head_graph


def made(**options: object) -> MultiHeadGraph:
    taps = {"student_taps": ["front", "back"], "teacher_taps": ["front", "back"], "heads": 2}
    return MultiHeadGraph(MultiHeadGraph.Options.model_validate(taps | options))


def outputs(channels: int = 4, batch: int = 6) -> Outputs:
    taps = {"front": torch.randn(batch, channels, 6, 6), "back": torch.randn(batch, channels + 1, 3, 3)}
    return Outputs(torch.zeros(batch, 2), {name: tap.relu() for name, tap in taps.items()})


def step(student: Outputs, teacher: Outputs, progress: float = 0.0) -> Step:
    size = len(student.logits)
    return Step(student, (teacher,), torch.zeros(size, 2), torch.arange(size), epoch=0, progress=progress)


def transfer(loss: MultiHeadGraph, student: Outputs, teacher: Outputs) -> Tensor:
    """The student's term alone: what is left is the same for every student."""
    return loss(step(student, teacher)) - loss(step(teacher, teacher))


def test_value_worked_by_hand():
    # tanh gives rows (1, -1) and (0, 0) in the teacher, (0, 0) twice in the student; a row's KL from even odds to
    # softmax(1, -1) is -ln 2 - (ln p + ln(1 - p)) / 2 with p = e / (e + 1/e), which is ln cosh 1; mean over two rows
    teacher = torch.tensor([[[50.0, -50.0], [0.0, 0.0]]])
    expected = math.log(math.cosh(1)) / 2
    assert multi_head_graph(torch.zeros(1, 2, 2), teacher).item() == pytest.approx(expected, abs=1e-6)
    two = multi_head_graph(torch.zeros(2, 2, 2), teacher.repeat(2, 1, 1))
    assert two.item() == pytest.approx(2 * expected, abs=1e-6)  # heads add up


def test_value_equals_the_loop_over_heads_and_samples():
    student, teacher = 3 * torch.randn(3, 5, 5), 3 * torch.randn(3, 5, 5)
    total = torch.zeros(())
    for head in range(3):
        for row in range(5):
            s, t = (one[head, row].tanh().softmax(0) for one in (student, teacher))
            total += (s * (s.log() - t.log())).sum() / 5
    torch.testing.assert_close(multi_head_graph(student, teacher), total)


def test_direction_is_the_first_right_singular_vector_when_values_are_apart():
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(5, 36, 4))
    v, _ = torch.linalg.qr(torch.randn(5, 4, 4))
    rows = u * torch.tensor([8.0, 2.0, 1.0, 0.5]) @ v.mT
    found = dominant(rows.mT.reshape(5, 4, 6, 6))
    sign = (rows.mean(1, keepdim=True) @ v[:, :, :1]).squeeze(1).sign()
    torch.testing.assert_close(found, v[:, :, 0] * sign, atol=1e-5, rtol=0)
    torch.testing.assert_close(dominant(rows), found)  # tokens


def test_direction_has_the_gradient_of_the_singular_vector_when_values_are_apart():
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(36, 4))
    v, _ = torch.linalg.qr(torch.randn(4, 4))
    rows, weights = u * torch.tensor([8.0, 2.0, 1.0, 0.5]) @ v.T, torch.randn(4)
    ours, exact = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    (dominant(ours[None])[0] @ weights).backward()
    first = torch.linalg.svd(exact, full_matrices=False)[2][0]
    (first @ weights * (first @ rows.mean(0)).sign().detach()).backward()
    torch.testing.assert_close(ours.grad, exact.grad, atol=1e-5, rtol=0)


def test_direction_ignores_scale_and_order_of_the_positions():
    rows = torch.randn(3, 20, 4).relu()
    scaled = rows * torch.tensor([1e-4, 1.0, 3000.0])[:, None, None]
    torch.testing.assert_close(dominant(scaled.flip(1)), dominant(rows))


def test_direction_of_vectors_is_the_vector():
    vectors = torch.randn(3, 4)
    torch.testing.assert_close(dominant(vectors), vectors / vectors.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("rows", [torch.zeros(2, 9, 4), torch.ones(2, 9, 4), torch.eye(4).repeat(2, 1, 1)])
def test_direction_and_gradient_are_finite_when_an_svd_has_none(rows):
    rows = rows.clone().requires_grad_()
    found = dominant(rows)
    (found @ torch.randn(4)).sum().backward()
    assert found.isfinite().all()
    assert rows.grad.isfinite().all()


def test_heads_learn_from_the_teacher_alone():
    teacher, students = outputs(), [outputs(), outputs()]
    grads = []
    for student in students:
        loss = made()
        torch.manual_seed(1)
        loss.connect(student, teacher)
        loss(step(student, teacher)).backward()
        grads.append([parameter.grad for parameter in loss.parameters()])
    assert len(grads[0]) == 5
    for one, other in zip(*grads, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other)


def test_students_term_is_zero_and_flat_at_the_teacher_and_positive_elsewhere():
    teacher = outputs()
    loss = made()
    loss.connect(teacher, teacher)
    tap = teacher.taps["back"].clone().requires_grad_()
    loss(step(Outputs(teacher.logits, {"front": teacher.taps["front"], "back": tap}), teacher)).backward()
    assert tap.grad.abs().max() < 1e-6
    assert transfer(loss, outputs(), teacher) > 0.01


def test_students_term_waits_for_the_start():
    teacher, student = outputs(), outputs()
    loss = made(start=0.5)
    loss.connect(student, teacher)
    early, late = (loss(step(student, teacher, progress)) for progress in (0.49, 0.5))
    torch.testing.assert_close(early, loss(step(teacher, teacher, 0.49)))
    assert late > early


def test_connectors_join_channels_and_every_neighbouring_pair_has_a_graph():
    teacher, student = outputs(8), outputs(4)
    loss = made(student_taps=["front", "back", "front"], teacher_taps=["front", "back", "front"])
    loss.connect(student, teacher)
    assert [tuple(one.weight.shape) for one in loss.connectors] == [(8, 4), (9, 5), (8, 4)]
    assert len(loss.graphs) == 2
    loss(step(student, teacher)).backward()
    assert all(one.weight.grad.abs().sum() > 0 for one in loss.connectors)


def test_students_term_falls_when_the_student_learns():
    torch.manual_seed(0)
    teacher = outputs(batch=8)
    taps = {name: torch.randn_like(tap).requires_grad_() for name, tap in teacher.taps.items()}
    loss, student = made(), Outputs(teacher.logits, taps)
    loss.connect(student, teacher)
    before = transfer(loss, student, teacher).item()
    optimizer = torch.optim.Adam(taps.values(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        loss(step(student, teacher)).backward()
        optimizer.step()
    assert transfer(loss, student, teacher).item() < 0.5 * before


def test_what_the_heads_rebuild_comes_closer_when_they_learn():
    torch.manual_seed(0)
    teacher, loss = outputs(batch=8), made()
    loss.connect(teacher, teacher)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(step(teacher, teacher))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.3 * values[0]


def test_batch_of_one_is_no_error():
    loss, teacher = made(), outputs(batch=1)
    loss.connect(teacher, teacher)
    assert loss(step(outputs(batch=1), teacher)).isfinite()


def test_error_names_tap_and_shape_when_it_cannot_be_compressed():
    teacher = outputs()
    student = Outputs(teacher.logits, {"front": torch.zeros(6), "back": torch.zeros(6, 4)})
    with pytest.raises(MismatchError, match=r"cannot compress student tap 'front' of shape \(6,\)"):
        made().connect(student, teacher)


@pytest.mark.parametrize(
    "options", [{"student_taps": ["a"]}, {"teacher_taps": ["a", "b", "c"]}, {"heads": 0}, {"start": 1.5}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError):
        made(**options)
