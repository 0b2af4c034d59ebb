from __future__ import annotations

import math

import pytest
import torch

from edgekd import spec
from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Split, Step
from edgekd.losses.binary_cross_entropy import BinaryCrossEntropy, binary_cross_entropy
from edgekd.losses.cross_entropy import cross_entropy


def made(classes: int | None = None) -> BinaryCrossEntropy:
    loss = BinaryCrossEntropy(spec.Options())
    if classes is not None:
        loss.split = Split(torch.zeros(4, dtype=torch.int64), classes)
    return loss


def test_value_worked_by_hand():
    # probabilities (1/2, 3/4) and (1/2, 1/2); labels (1, 1) and (0, 1/2)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.5]])
    # sample 1: ln 2 + ln 4/3, sample 2: ln 2 + ln 2
    expected = (3 * math.log(2) + math.log(4 / 3)) / 2
    assert binary_cross_entropy(logits, labels).item() == pytest.approx(expected, abs=1e-6)


def test_one_logit_equals_cross_entropy_of_two():
    logits, labels = torch.randn(6, 1), torch.rand(6, 1)
    pair = torch.cat([logits, torch.zeros(6, 1)], 1)
    torch.testing.assert_close(
        binary_cross_entropy(logits, labels), cross_entropy(pair, torch.cat([labels, 1 - labels], 1))
    )


def test_value_equals_the_loop_over_classes():
    logits, labels = torch.randn(5, 4), torch.rand(5, 4)
    p = logits.sigmoid()
    looped = sum(-(labels[:, k] * p[:, k].log() + (1 - labels[:, k]) * (1 - p[:, k]).log()) for k in range(4))
    torch.testing.assert_close(binary_cross_entropy(logits, labels), looped.mean())


def test_gradient_vanishes_where_the_probability_is_the_label():
    labels = torch.tensor([[0.2, 0.9, 0.5]])
    logits = labels.logit().requires_grad_()
    binary_cross_entropy(logits, labels).backward()
    assert logits.grad.abs().max() < 1e-6


def test_learning_reduces_the_loss():
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 3, requires_grad=True), (torch.rand(8, 3) > 0.5).float()
    optimizer = torch.optim.SGD([logits], lr=4.0)
    loss, values = made(), []
    for _ in range(20):
        value = loss(Step(Outputs(logits), (), labels, torch.arange(8), epoch=0, progress=0.0))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("classes", [1, 2, 6])
def test_any_number_of_logits_is_taken(classes):
    made().connect(Outputs(torch.zeros(2, classes)), None)
    made(classes).connect(Outputs(torch.zeros(2, classes)), None)


def test_error_names_both_numbers_when_logits_and_labels_do_not_pair_up():
    with pytest.raises(MismatchError, match="one label for each logit: the student gives 1, the data has 2 classes"):
        made(2).connect(Outputs(torch.zeros(2, 1)), None)
