from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.review_kd import AttentionFusion, ReviewKD, hcl

STUDENT = [(3, 8, 8), (5, 4, 4), (6, 2, 2)]
TEACHER = [(4, 8, 8), (7, 4, 4), (9, 2, 2)]


def made(student: list[Tensor], teacher: list[Tensor], **options: object) -> tuple[ReviewKD, Step]:
    names = [str(one) for one in range(len(student))]
    loss = ReviewKD(ReviewKD.Options(student_taps=names, teacher_taps=names, **options))
    logits = torch.zeros(len(student[0]), 2)
    sides = [Outputs(logits, dict(zip(names, maps, strict=True))) for maps in (student, teacher)]
    loss.connect(sides[0], sides[1])
    return loss, Step(sides[0], (sides[1],), logits, torch.arange(len(logits)), epoch=0, progress=0.0)


def maps(shapes: list[tuple[int, ...]], batch: int = 3) -> list[Tensor]:
    return [torch.randn(batch, *shape) for shape in shapes]


def test_hcl_worked_by_hand():
    # difference 4x4 with a 8 in one corner: 64 / 16 = 4; 2x2 has one mean of 2: 4 / 4 = 1; 1x1: (8 / 16)^2 = 0.25.
    # 4 is no smaller than the map, so the levels 2 and 1 count 1/2 and 1/4: (4 + 0.5 + 0.0625) / 1.75
    student, teacher = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    teacher[0, 0, 0, 0] = 9.0
    student += 1.0
    assert hcl(student, teacher).item() == pytest.approx(4.5625 / 1.75)


def test_hcl_equals_the_sum_over_levels_when_all_count():
    student, teacher = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    difference = student - teacher  # averaging is linear
    parts = [difference, *(F.avg_pool2d(difference, 8 // level) for level in (4, 2, 1))]
    expected = sum(part.square().mean() / 2**level for level, part in enumerate(parts)) / 1.875
    torch.testing.assert_close(hcl(student, teacher), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (3, 2), (7, 7)])
def test_hcl_of_any_size_is_the_square_when_the_difference_is_constant(size):
    given = torch.randn(2, 3, *size)
    assert hcl(given + 2, given).item() == pytest.approx(4.0, rel=1e-5)
    assert hcl(given, given).item() == 0.0


def test_fusion_weighs_both_sides_of_every_position():
    fusion = AttentionFusion(3, 4, 5, deepest=False)
    features, deeper = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 2)
    guided, fused = fusion(features, deeper)
    own, enlarged = fusion.reduce(features), deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    both = torch.cat([own, enlarged], dim=1)
    weights = torch.sigmoid(
        torch.einsum("oc,bchw->bohw", fusion.attend.weight[:, :, 0, 0], both) + fusion.attend.bias[:, None, None]
    )
    expected = weights[:, :1] * own + weights[:, 1:] * enlarged
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(guided, fusion.expand(expected), atol=1e-4, rtol=1e-4)


def test_value_is_the_sum_over_stages_from_deep_to_shallow():
    student, teacher = maps(STUDENT), maps(TEACHER)
    loss, step = made(student, teacher)
    guided, fused = loss.fusions[2](student[2], None)
    expected = hcl(guided, teacher[2])
    for stage in (1, 0):
        guided, fused = loss.fusions[stage](student[stage], fused)
        expected = expected + hcl(guided, teacher[stage])
    torch.testing.assert_close(loss(step), expected)
    assert [fusion.attend is None for fusion in loss.fusions] == [False, False, True]
    assert fused.shape == (3, 6, 8, 8)  # the width is the deepest stage's


def test_shallow_stage_learns_from_the_deeper_one():
    student, teacher = maps(STUDENT), maps(TEACHER)
    student[2].requires_grad_()
    loss, step = made(student, teacher)
    for fusion in loss.fusions[1:]:
        for parameter in fusion.parameters():
            parameter.requires_grad_(False)
    _, fused = loss.fusions[2](student[2], None)
    guided, _ = loss.fusions[1](student[1], fused)
    hcl(guided, teacher[1]).backward()
    assert student[2].grad.abs().sum() > 0
    assert loss(step).isfinite()


def test_stages_of_other_sizes_and_pooled_features_are_joined():
    loss, step = made(
        [torch.randn(4, 3, 8, 8), torch.randn(4, 6, 3, 3), torch.randn(4, 6)],
        [torch.randn(4, 4, 4, 4), torch.randn(4, 7, 5, 5), torch.randn(4, 7)],
    )
    value = loss(step)
    value.backward()
    assert value.isfinite()
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_one_stage_needs_no_fusion():
    loss, step = made(maps(STUDENT[2:]), maps(TEACHER[2:]))
    assert loss.fusions[0].attend is None
    assert loss(step).item() > 0


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)])
def test_term_grows_over_the_warmup_epochs(epoch, share):
    student, teacher = maps(STUDENT), maps(TEACHER)
    loss, step = made(student, teacher, warmup_epochs=4)
    full, _ = made(student, teacher)
    full.load_state_dict(loss.state_dict())
    torch.testing.assert_close(loss(replace(step, epoch=epoch)), full(step) * share)


def test_fusions_learn():
    loss, step = made(maps(STUDENT, batch=8), maps(TEACHER, batch=8))
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


def test_errors_name_what_is_wrong():
    with pytest.raises(ValidationError, match="warmup_epochs"):
        ReviewKD.Options(student_taps=["a"], teacher_taps=["b"], warmup_epochs=-1)
    with pytest.raises(MismatchError, match="review_kd cannot join student tap '0'"):
        made([torch.randn(2, 3)], [torch.randn(2, 3, 4, 4)])
