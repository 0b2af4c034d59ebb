from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.mgd import MGD, mgd


def made(student: Tensor, teacher: Tensor, **options: object) -> tuple[MGD, Step]:
    loss = MGD(MGD.Options(student_taps=["s"], teacher_taps=["t"], **options))
    logits = torch.zeros(len(student), 2)
    step = Step(
        Outputs(logits, {"s": student}), (Outputs(logits, {"t": teacher}),), logits, torch.arange(len(student)), 0, 0.0
    )
    loss.connect(step.student, step.teacher)
    return loss, step


def kept(loss: MGD, step: Step, maps: Tensor, index: int = 0) -> Tensor:
    return loss._kept(step, index, maps)


def test_value_worked_by_hand():
    # (1 + 4) for the first sample, (9 + 0) for the second, mean over the two
    generated = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(2, 2, 1, 1)
    target = torch.tensor([[0.0, 0.0], [0.0, 4.0]]).view(2, 2, 1, 1)
    assert mgd(generated, target).item() == 7.0


@pytest.mark.parametrize("mask", ["space", "channel"])
def test_value_equals_the_steps_of_the_paper(mask):
    student, teacher = torch.randn(3, 4, 5, 5), torch.randn(3, 6, 5, 5)
    loss, step = made(student, teacher, masked=0.5, mask=mask)
    first, second = loss.generators[0][0], loss.generators[0][2]
    aligned = loss.aligners[0](student)
    generated = second(torch.relu(first(aligned * kept(loss, step, aligned))))
    torch.testing.assert_close(loss(step), ((generated - teacher) ** 2).sum() / 3)


def test_aligner_is_there_only_when_channels_differ():
    assert isinstance(made(torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4))[0].aligners[0], nn.Conv2d)
    assert isinstance(made(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))[0].aligners[0], nn.Identity)


@pytest.mark.parametrize(("mask", "shape"), [("space", (200, 1, 6, 5)), ("channel", (200, 30, 1, 1))])
def test_mask_takes_its_share_of_every_place_and_sample(mask, shape):
    maps = torch.randn(200, 30, 6, 5)
    loss, step = made(maps, maps, masked=0.3, mask=mask)
    found = kept(loss, step, maps)
    assert found.shape == shape
    assert set(found.unique().tolist()) == {0.0, 1.0}
    # 6000 draws: a standard error of 0.006 for the mean; 200 and 30 draws: 0.03 and 0.08
    assert found.mean().item() == pytest.approx(0.7, abs=0.03)
    assert found.flatten(1).mean(0).sub(0.7).abs().max() < 0.16
    assert found.flatten(1).mean(1).sub(0.7).abs().max() < 0.45


def test_mask_belongs_to_the_sample_and_changes_with_epoch_layer_and_seed():
    maps = torch.randn(8, 2, 6, 6)
    loss, step = made(maps, maps, masked=0.5)
    found = kept(loss, step, maps)
    order = torch.tensor([7, 2, 5])
    assert torch.equal(kept(loss, replace(step, ids=order), maps[order]), found[order])
    assert len({tuple(one.flatten().tolist()) for one in found}) == 8
    assert not torch.equal(kept(loss, replace(step, epoch=1), maps), found)
    assert not torch.equal(kept(loss, step, maps, index=1), found)
    other, _ = made(maps, maps, masked=0.5)
    assert not torch.equal(kept(other, step, maps), found)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(kept(other, step, maps), found)


def test_seed_of_the_mask_comes_from_the_random_state():
    maps = torch.randn(2, 2, 3, 3)
    seeds = []
    for _ in range(2):
        torch.manual_seed(5)
        seeds.append(made(maps, maps)[0].seed.item())
    assert seeds[0] == seeds[1]


def test_masked_positions_get_no_gradient():
    student = torch.randn(4, 3, 6, 6, requires_grad=True)
    loss, step = made(student, torch.randn(4, 3, 6, 6), masked=0.5)
    loss(step).backward()
    hidden = kept(loss, step, student).expand_as(student) == 0
    assert (student.grad[hidden] == 0).all()
    assert (student.grad[~hidden] != 0).all()


def test_nothing_is_masked_when_masked_is_zero():
    maps = torch.randn(2, 2, 3, 3)
    loss, step = made(maps, maps, masked=0.0)
    assert kept(loss, step, maps).min().item() == 1.0


def test_block_learns():
    student = torch.randn(8, 4, 4, 4)
    loss, step = made(student, student[:, :2] * 2)
    optimizer = torch.optim.SGD(loss.parameters(), lr=3e-3)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("options", [{"masked": 1.0}, {"masked": -0.1}, {"mask": "time"}])
def test_options_are_refused_when_out_of_range(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        MGD.Options(student_taps=["a"], teacher_taps=["b"], **options)


def test_error_names_the_loss_when_taps_are_no_maps():
    with pytest.raises(MismatchError, match=r"mgd cannot join student tap 's' .* with \(B, C, H, W\)\."):
        made(torch.randn(2, 3), torch.randn(2, 3))
