from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd._schedule import clipped_together, learning_rate, make_optimizer, set_learning_rate
from edgekd.recipe import TrainSettings


def rates(total: int, per_epoch: int, **settings: object) -> list[float]:
    chosen = TrainSettings(lr=0.8, **settings)
    return [learning_rate(step, total=total, steps_per_epoch=per_epoch, settings=chosen) for step in range(total)]


def test_cosine_after_warmup_worked_by_hand():
    # 2 warm-up steps, then half a cosine over 4: 1, cos 45 degrees, 0, -cos 45 degrees
    root = 2**-0.5
    expected = [0.4, 0.8, 0.8, 0.4 * (1 + root), 0.4, 0.4 * (1 - root)]
    assert rates(6, 2, warmup_epochs=1.0) == pytest.approx(expected)


def test_steps_drop_at_fractions_of_training():
    found = rates(8, 1, schedule="steps", warmup_epochs=0.0, milestones=[0.5, 0.75], gamma=0.1)
    assert found == pytest.approx([0.8] * 4 + [0.08] * 2 + [0.008] * 2)


def test_rate_is_constant_when_asked():
    assert rates(4, 1, schedule="constant", warmup_epochs=0.0) == [0.8] * 4


def test_warmup_takes_at_most_half_when_training_is_short():
    found = rates(4, 4, warmup_epochs=5.0)
    assert found[:3] == pytest.approx([0.4, 0.8, 0.8])
    assert found[3] < 0.8


@pytest.mark.parametrize("schedule", ["cosine", "steps", "constant"])
def test_rate_is_positive_and_at_most_the_peak(schedule):
    assert all(0 < rate <= 0.8 for rate in rates(37, 5, schedule=schedule))


def test_only_matrices_and_kernels_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model[2].bias.requires_grad_(False)
    groups = make_optimizer([model, model], settings=TrainSettings(weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.3, 2), (0.0, 3)]


def test_optimizer_is_the_one_asked_for():
    adamw = make_optimizer([nn.Linear(2, 2)], settings=TrainSettings(optimizer="adamw", momentum=0.85))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.85, 0.999)
    plain = make_optimizer([nn.Linear(2, 2)], settings=TrainSettings(momentum=0.0))
    assert plain.defaults["nesterov"] is False


class _Slow(nn.Module):
    """A part with a rate of its own, as the quantizers of a graph are."""

    def __init__(self, rate: float, size: int) -> None:
        super().__init__()
        self.own_rate = rate
        self.gain = nn.Parameter(torch.ones(size, size))
        self.inner = nn.Linear(2, 2, bias=False)


def test_parameters_with_a_rate_of_their_own_have_groups_without_decay():
    model = nn.Sequential(nn.Linear(2, 2), _Slow(0.1, 3), _Slow(5.0, 1), _Slow(0.1, 2))
    optimizer = make_optimizer([model, model], settings=TrainSettings(weight_decay=0.3, lr=0.2))
    found = [(group["weight_decay"], len(group["params"]), group.get("rate")) for group in optimizer.param_groups]
    # three inner layers and one outer are weights like any other
    assert found == [(0.3, 4, None), (0.0, 1, None), (0.0, 2, 0.1), (0.0, 1, 5.0)]
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.1, 0.01, 0.5])


def test_gradients_are_clipped_apart_from_those_with_a_rate_of_their_own():
    model = nn.Sequential(nn.Linear(2, 2), _Slow(0.1, 3), _Slow(5.0, 1))
    sets = clipped_together(make_optimizer([model], settings=TrainSettings()))
    assert [sorted(one.numel() for one in each) for each in sets] == [[2, 4, 4, 4], [1, 9]]
    assert [len(each) for each in clipped_together(make_optimizer([nn.Linear(2, 2)], settings=TrainSettings()))] == [2]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_of_a_parameter_with_its_own_rate_is_that_much_longer(optimizer):
    model = _Slow(0.1, 1)
    chosen = make_optimizer([model], settings=TrainSettings(optimizer=optimizer, momentum=0.0, lr=0.2, weight_decay=0))
    set_learning_rate(chosen, 0.2)
    before = [model.gain.detach().clone(), model.inner.weight.detach().clone()]
    (model.gain.sum() + model.inner.weight.sum()).backward()
    chosen.step()
    moved = [float((one - was).abs().max()) for one, was in zip([model.gain, model.inner.weight], before, strict=True)]
    assert moved == pytest.approx([0.02, 0.2], rel=1e-4)
