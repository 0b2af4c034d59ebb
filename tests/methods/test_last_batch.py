from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import UsageError
from edgekd.losses.cross_entropy import CrossEntropy, cross_entropy
from edgekd.losses.kd import KD, kd
from edgekd.methods._base import Batch, WeightedLoss
from edgekd.methods.last_batch import LastBatch
from edgekd.models.tiny import Tiny


def network() -> nn.Module:
    return Tiny(Tiny.Options(width=4)).build(3, (1, 8, 8))


def method(student: nn.Module, *, tau: float = 3.0, example: Tensor | None = None) -> LastBatch:
    losses = [
        WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 1.0),
        WeightedLoss("kd", KD(KD.Options(tau=tau)), 0.8),
    ]
    made = LastBatch(student, [], losses)
    made.prepare(torch.randn(2, 1, 8, 8) if example is None else example)
    made.start_epoch(0)
    return made


def batch(ids: list[int], images: Tensor, *, epoch: int = 0) -> Batch:
    chosen = torch.tensor(ids)
    return Batch(images[chosen], torch.eye(3)[chosen % 3], chosen, epoch=epoch, progress=0.0)


class Scaled(nn.Module):
    """Logits are the inputs times a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.factor * inputs


def test_term_is_that_worked_by_hand() -> None:
    student = Scaled()
    images = torch.tensor([[0.0, 0.0], [math.log(9.0), 0.0], [0.0, 0.0]])
    made = method(student, tau=1.0, example=images)
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    first = made.terms(Batch(images[:2], labels, torch.tensor([0, 1]), epoch=0, progress=0.0))
    assert first["kd"].value.item() == 0.0
    student.factor.data.zero_()  # the step between: all is even now
    second = made.terms(Batch(images[1:], labels, torch.tensor([1, 2]), epoch=0, progress=0.1))
    # sample 1 alone: before (0.9, 0.1), now (0.5, 0.5): 0.9 ln 1.8 + 0.1 ln 0.2
    assert second["kd"].value.item() == pytest.approx(0.3681, abs=1e-4)
    assert second["kd"].weight == 0.8
    assert second["cross_entropy"].value.item() == pytest.approx(math.log(2))


def test_term_compares_the_repeated_rows_with_what_they_were_before() -> None:
    student, images = network(), torch.randn(9, 1, 8, 8)
    made = method(student)
    student.eval()
    made.terms(batch([4, 7, 1, 2], images))
    before = student(images[[1, 2]]).detach()
    with torch.no_grad():
        student.fc.bias.add_(torch.tensor([1.0, -1.0, 0.0]))
    again = batch([1, 2, 8, 0], images)
    terms = made.terms(again)
    torch.testing.assert_close(terms["kd"].value, kd(student(images[[1, 2]]), before, tau=3.0))
    torch.testing.assert_close(terms["cross_entropy"].value, cross_entropy(student(again.inputs), again.labels))


def test_rows_are_found_by_their_ids_wherever_they_are() -> None:
    student, images = network(), torch.randn(9, 1, 8, 8)
    student.eval()
    values = []
    for ids in ([1, 2, 8, 0], [8, 2, 0, 1]):
        made = method(student)
        student.fc.bias.data.zero_()
        made.terms(batch([4, 7, 1, 2], images))
        student.fc.bias.data[0] += 1.0
        values.append(made.terms(batch(ids, images))["kd"].value)
    torch.testing.assert_close(values[0], values[1])
    assert values[0] > 0.01


def test_first_step_of_an_epoch_has_the_labels_alone() -> None:
    student, images = network(), torch.randn(9, 1, 8, 8)
    made = method(student)
    assert made.terms(batch([4, 7, 1, 2], images))["kd"].value.item() == 0.0
    made.start_epoch(1)
    assert made.terms(batch([1, 2, 5, 6], images, epoch=1))["kd"].value.item() == 0.0


def test_last_logits_carry_no_gradient_and_are_in_no_checkpoint() -> None:
    student, images = network(), torch.randn(9, 1, 8, 8)
    made = method(student)
    for ids in ([4, 7, 1, 2], [1, 2, 8, 0]):
        terms = made.terms(batch(ids, images))
        torch.stack([term.value * term.weight for term in terms.values()]).sum().backward()
    assert all(key.startswith("student.") for key in made.state_dict())


def test_error_when_batches_repeat_nothing() -> None:
    images = torch.randn(9, 1, 8, 8)
    made = method(network())
    made.terms(batch([0, 1, 2, 3], images))
    with pytest.raises(UsageError, match=r"found no sample of the last batch in this one.*'repeat_half'"):
        made.terms(batch([4, 5, 6, 7], images))
