from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd._average import Average


def test_average_worked_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.9)
    nn.init.constant_(model.weight, 2.0)
    average.update()  # decay 2/11: 2/11 * 1 + 9/11 * 2
    nn.init.constant_(model.weight, 4.0)
    average.update()  # decay 3/12: 1/4 * 20/11 + 3/4 * 4
    average.apply()
    assert model.weight.item() == pytest.approx(0.25 * 20 / 11 + 3)


def test_live_weights_return_when_the_block_ends():
    model = nn.BatchNorm1d(2)
    average = Average(model, 0.9)
    model.running_mean.fill_(7.0)
    model.num_batches_tracked.fill_(5)
    with average.applied():
        assert model.running_mean.tolist() == [0.0, 0.0]
        assert model.num_batches_tracked.item() == 5  # a counter is not averaged
    assert model.running_mean.tolist() == [7.0, 7.0]


def test_average_goes_on_when_its_state_is_loaded():
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    first = Average(model, 0.99)
    first.update()
    second = Average(nn.Linear(3, 3), 0.99)
    second.load(first.state())
    assert str(second.state()) == str(first.state())
