from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from edgekd import spec
from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs
from edgekd.losses.cross_entropy import CrossEntropy, cross_entropy


def test_value_worked_by_hand():
    # softmax of (0, ln 3) is (1/4, 3/4); of (0, 0) it is (1/2, 1/2)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    labels = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    assert cross_entropy(logits, labels).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, abs=1e-6)


def test_smoothed_labels_equal_torchs_label_smoothing():
    logits, classes = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    smooth = F.one_hot(classes, 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(cross_entropy(logits, smooth), F.cross_entropy(logits, classes, label_smoothing=0.1))


def test_one_logit_is_refused_before_training():
    loss = CrossEntropy(spec.Options())
    loss.connect(Outputs(torch.zeros(4, 2)), None)
    with pytest.raises(MismatchError, match=r"cross_entropy takes a softmax.*Use binary_cross_entropy"):
        loss.connect(Outputs(torch.zeros(4, 1)), None)
