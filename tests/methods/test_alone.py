from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.errors import UsageError
from edgekd.losses.cross_entropy import CrossEntropy
from edgekd.losses.kd import KD
from edgekd.methods._base import WeightedLoss
from edgekd.methods.alone import Alone


def labels_loss(weight: float) -> WeightedLoss:
    return WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), weight)


def teacher_loss(weight: float) -> WeightedLoss:
    return WeightedLoss("kd", KD(KD.Options()), weight)


@pytest.mark.parametrize(
    ("weights", "expected"), [([0.1], [1.0]), ([2.0], [1.0]), ([1.0, 3.0], [0.25, 0.75]), ([0.0], [1.0])]
)
def test_weights_of_the_kept_losses_sum_to_one(weights, expected):
    method = Alone(nn.Flatten(), [], [teacher_loss(0.9), *(labels_loss(weight) for weight in weights)])
    assert [term.weight for term in method.losses] == pytest.approx(expected)
    method.prepare(torch.zeros(2, 3))


def test_error_names_the_losses_when_all_need_a_teacher():
    with pytest.raises(UsageError, match=r"needs a loss that works without a teacher, got: kd\. Add cross_entropy"):
        Alone(nn.Flatten(), [], [teacher_loss(0.9)])
