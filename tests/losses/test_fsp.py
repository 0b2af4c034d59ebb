from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.fsp import FSP, fsp


def made(count: int = 2, **options: object) -> FSP:
    taps = {"student_taps": list("abc"[:count]), "teacher_taps": list("xyz"[:count])}
    return FSP(FSP.Options(**(taps | options)))


def outputs(names: str, *shapes: tuple[int, ...]) -> Outputs:
    maps = {name: torch.randn(*shape, requires_grad=True) for name, shape in zip(names, shapes, strict=True)}
    return Outputs(torch.zeros(2, 3), maps)


def step(student: Outputs, teacher: Outputs, progress: float = 0.0) -> Step:
    return Step(student, (teacher,), torch.zeros(2, 3), torch.arange(2), epoch=0, progress=progress)


def test_value_worked_by_hand_with_two_channels_and_a_pooled_map():
    # first: channels (1, 3) and (2, 0) over two positions; second: one channel (1, 1)
    # student: (1 + 3) / 2 = 2 and (2 + 0) / 2 = 1. Teacher's second map is one position of 2, its first pools to
    # 3 and 2: 6 and 4. (16 + 9) / 2
    first = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])
    value = fsp((first, torch.ones(1, 1, 1, 2)), (first, torch.full((1, 1, 1, 1), 2.0)))
    assert value.item() == pytest.approx(12.5)


def test_value_equals_the_loop_over_positions_when_sizes_agree():
    first, second = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    guide, next_guide = torch.randn(2, 3, 2, 2), torch.randn(2, 6, 2, 2)
    total = 0.0
    for sample in range(2):
        for i in range(3):
            for j in range(6):
                ours = (first[sample, i] * second[sample, j]).sum().item() / 20
                theirs = (guide[sample, i] * next_guide[sample, j]).sum().item() / 4
                total += (ours - theirs) ** 2
    assert fsp((first, second), (guide, next_guide)).item() == pytest.approx(total / 36, rel=1e-5)


def test_consecutive_layers_are_added():
    student = outputs("abc", (2, 3, 4, 4), (2, 5, 4, 4), (2, 6, 2, 2))
    teacher = outputs("xyz", (2, 3, 8, 8), (2, 5, 4, 4), (2, 6, 3, 3))
    s, t = student.taps, teacher.taps
    expected = fsp((s["a"], s["b"]), (t["x"], t["y"])) + fsp((s["b"], s["c"]), (t["y"], t["z"]))
    loss = made(3)
    loss.connect(student, teacher)
    torch.testing.assert_close(loss(step(student, teacher)), expected)


def test_term_is_zero_after_its_share_of_training_and_still_has_a_gradient():
    student, teacher = outputs("ab", (2, 3, 4, 4), (2, 5, 4, 4)), outputs("xy", (2, 3, 4, 4), (2, 5, 4, 4))
    loss = made(until=0.25)
    assert loss(step(student, teacher, progress=0.249)) > 0
    after = loss(step(student, teacher, progress=0.25))
    after.backward()
    assert after.item() == 0
    assert student.taps["a"].grad.abs().sum() == 0


def test_gradient_saturates_in_half_precision_where_float32_holds_more():
    maps = [3000 * torch.randn(2, 4, 6, 6) for _ in range(4)]
    half = [one.half().requires_grad_() for one in maps[:2]]
    student = Outputs(torch.zeros(2, 3), {"a": half[0], "b": half[1]})
    made()(step(student, Outputs(torch.zeros(2, 3), {"x": maps[2], "y": maps[3]}))).backward()
    assert all(one.grad.isfinite().all() for one in half)
    assert max(one.grad.abs().max().item() for one in half) == torch.finfo(torch.float16).max


def test_a_few_steps_bring_the_student_nearer():
    student, teacher = outputs("ab", (2, 3, 4, 4), (2, 5, 2, 2)), outputs("xy", (2, 3, 4, 4), (2, 5, 4, 4))
    loss, given = made(), step(student, teacher)
    optimizer = torch.optim.SGD(student.taps.values(), lr=1.0)
    first = loss(given).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(given).backward()
        optimizer.step()
    assert loss(given).item() < 0.5 * first


def test_error_names_the_four_taps_when_channels_differ():
    with pytest.raises(
        MismatchError,
        match=r"same channels .* student 'a' has \(2, 3, 4, 4\) and 'b' \(2, 5, 4, 4\), teacher 'x' has \(2, 3, 4, 4\)"
        r" and 'y' \(2, 6, 4, 4\)",
    ):
        made().connect(outputs("ab", (2, 3, 4, 4), (2, 5, 4, 4)), outputs("xy", (2, 3, 4, 4), (2, 6, 4, 4)))


def test_error_names_the_four_taps_when_one_is_no_map():
    with pytest.raises(MismatchError, match=r"needs taps of shape \(B, C, H, W\): .* 'b' \(2, 5\), teacher 'x'"):
        made().connect(outputs("ab", (2, 3, 4, 4), (2, 5)), outputs("xy", (2, 3, 4, 4), (2, 5, 4, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_taps": ["a", "b", "c"]}, "must pair up, got 3 and 2"),
        ({"student_taps": ["a"], "teacher_taps": ["x"]}, "at least 2"),
        ({"until": 1.5}, "until"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        made(**options)
