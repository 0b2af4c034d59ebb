from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import UsageError
from edgekd.losses._base import Split
from edgekd.losses.cross_entropy import CrossEntropy, cross_entropy
from edgekd.losses.kd import KD, kd
from edgekd.methods._base import Batch, Context, WeightedLoss
from edgekd.methods.class_pairs import ClassPairs
from edgekd.models.tiny import Tiny


def network() -> nn.Module:
    return Tiny(Tiny.Options(width=4)).build(3, (1, 8, 8))


def method(student: nn.Module, *, tau: float = 4.0, split: Split | None = None) -> ClassPairs:
    losses = [
        WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 1.0),
        WeightedLoss("kd", KD(KD.Options(tau=tau)), 0.5),
    ]
    return ClassPairs(student, [], losses, context=Context(split))


def batch(classes: list[int]) -> Batch:
    count = len(classes)
    return Batch(torch.randn(count, 1, 8, 8), torch.eye(3)[classes], torch.arange(count), epoch=0, progress=0.0)


class Same(nn.Module):
    """Logits are the inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * 1.0


def test_terms_are_those_worked_by_hand() -> None:
    made = method(Same(), tau=1.0)
    inputs = torch.tensor([[0.0, 0.0], [math.log(9.0), 0.0]])
    made.prepare(inputs)
    terms = made.terms(Batch(inputs, torch.tensor([[1.0, 0.0]] * 2), torch.tensor([0, 1]), epoch=0, progress=0.0))
    # the sample says (0.5, 0.5), its partner (0.9, 0.1): ln 2, and 0.9 ln 1.8 + 0.1 ln 0.2
    values = {name: (round(term.value.item(), 4), term.weight) for name, term in terms.items()}
    assert values == {"cross_entropy": (0.6931, 1.0), "kd": (0.3681, 0.5)}


def test_first_half_learns_its_labels_and_the_partners_answers() -> None:
    student, one = network(), batch([0, 1, 2, 0, 1, 2])
    made = method(student)
    made.prepare(one.inputs)
    student.eval()
    terms = made.terms(one)
    own, partners = student(one.inputs[:3]), student(one.inputs[3:])
    torch.testing.assert_close(terms["kd"].value, kd(own, partners, tau=4.0))
    torch.testing.assert_close(terms["cross_entropy"].value, cross_entropy(own, one.labels[:3]))


def test_partners_carry_no_gradient() -> None:
    student, one = network(), batch([0, 1, 0, 1])
    made = method(student)
    made.prepare(one.inputs)
    one.inputs.requires_grad_(True)
    terms = made.terms(one)
    torch.stack([term.value for term in terms.values()]).sum().backward()
    assert one.inputs.grad is not None
    assert bool((one.inputs.grad[:2] != 0).any())
    assert torch.equal(one.inputs.grad[2:], torch.zeros(2, 1, 8, 8))


def test_term_is_zero_when_a_sample_is_its_own_partner() -> None:
    student, one = network(), batch([0, 1, 0, 1])
    one.inputs[2:] = one.inputs[:2]
    made = method(student)
    made.prepare(one.inputs)
    student.eval()
    assert made.terms(one)["kd"].value.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("classes", [[0, 1, 1, 0], [0, 1, 0]])
def test_error_when_a_batch_holds_no_pairs(classes: list[int]) -> None:
    made = method(network())
    made.prepare(torch.randn(2, 1, 8, 8))
    with pytest.raises(UsageError, match=r"classes of a batch's first half again.*'same_class'"):
        made.terms(batch(classes))


def test_error_when_samples_have_no_labels() -> None:
    made = method(network(), split=Split(torch.tensor([0, -1, 1]), 3))
    with pytest.raises(UsageError, match="class_pairs needs the labels of all samples"):
        made.prepare(torch.randn(2, 1, 8, 8))
