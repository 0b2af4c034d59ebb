from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd._schedule import learning_rate, make_optimizer
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
