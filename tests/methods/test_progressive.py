from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from edgekd.batches import Batches
from edgekd.datasets._base import InMemorySamples
from edgekd.engine import fit
from edgekd.losses.cross_entropy import CrossEntropy, cross_entropy
from edgekd.losses.kd import KD, kd
from edgekd.methods._base import Batch, Term, WeightedLoss
from edgekd.methods.progressive import Progressive
from edgekd.models.tiny import Tiny
from edgekd.recipe import ComputeSettings, TrainSettings
from edgekd.spec import Preprocessing


def network() -> nn.Module:
    return Tiny(Tiny.Options(width=4)).build(3, (1, 8, 8))


def method(student: nn.Module, *, tau: float = 1.0, example: Tensor | None = None, **options: Any) -> Progressive:
    losses = [
        WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 0.1),
        WeightedLoss("kd", KD(KD.Options(tau=tau)), 0.9),
    ]
    made = Progressive(student, [], losses, Progressive.Options(**options))
    made.prepare(torch.randn(2, 1, 8, 8) if example is None else example)
    return made


def batch(*, epoch: int, progress: float) -> Batch:
    return Batch(torch.randn(4, 1, 8, 8), torch.eye(3)[[0, 1, 2, 0]], torch.arange(4), epoch=epoch, progress=progress)


def total(terms: dict[str, Term]) -> Tensor:
    return torch.stack([term.value * term.weight for term in terms.values()]).sum()


def test_terms_are_those_worked_by_hand() -> None:
    student = nn.Linear(1, 2, bias=False)
    student.weight.data = torch.tensor([[math.log(9.0)], [0.0]])
    inputs, labels = torch.ones(1, 1), torch.tensor([[1.0, 0.0]])
    made = method(student, example=inputs)
    made.start_epoch(1)
    student.weight.data.zero_()
    # second of four epochs: alpha 0.8 * 2 / 4
    terms = made.terms(Batch(inputs, labels, torch.tensor([0]), epoch=1, progress=0.25))
    values = {name: (round(term.value.item(), 4), round(term.weight, 6)) for name, term in terms.items()}
    # ln 2; and 0.9 ln 1.8 + 0.1 ln 0.2, since it said (0.9, 0.1) an epoch before and says (0.5, 0.5) now
    assert values == {"cross_entropy": (0.6931, 0.6), "kd": (0.3681, 0.4)}


def test_gradient_is_that_of_the_paper_s_soft_target() -> None:
    student, one = network(), batch(epoch=2, progress=0.4)
    made = method(student)
    made.start_epoch(2)
    earlier = copy.deepcopy(student).eval()
    with torch.no_grad():
        student.fc.weight.mul_(-2.0)
    student.eval()
    total(made.terms(one)).backward()
    ours = [parameter.grad.clone() for parameter in student.parameters()]
    student.zero_grad()
    alpha = 0.8 * 3 / 5
    target = (1 - alpha) * one.labels + alpha * earlier(one.inputs).softmax(dim=1).detach()
    cross_entropy(student(one.inputs), target).backward()
    for found, parameter in zip(ours, student.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, atol=1e-6, rtol=1e-4)  # sums in another order


def test_first_epoch_learns_the_labels_alone() -> None:
    made = method(network())
    made.start_epoch(0)
    terms = made.terms(batch(epoch=0, progress=0.1))
    assert terms["cross_entropy"].weight == 1.0
    assert (terms["kd"].weight, terms["kd"].value.item()) == (0.0, 0.0)


def test_share_grows_linearly_to_alpha_in_the_last_epoch_and_is_even_within_one() -> None:
    epochs, steps, weights = 5, 4, []
    made = method(network(), alpha=0.7)
    for epoch in range(epochs):
        made.start_epoch(epoch)
        found = {
            made.terms(batch(epoch=epoch, progress=(epoch * steps + step) / (epochs * steps)))["kd"].weight
            for step in range(steps)
        }
        assert len(found) == 1
        weights.append(found.pop())
    assert weights == pytest.approx([0.0, 0.28, 0.42, 0.56, 0.7])


def test_earlier_student_sees_the_same_batch_and_stays_as_it_was() -> None:
    student, one = network(), batch(epoch=1, progress=0.5)
    made = method(student, tau=2.0)
    made.start_epoch(1)
    earlier = copy.deepcopy(student).eval()
    for parameter in student.parameters():
        parameter.data.mul_(0.5)
    student.train()
    moved = made.terms(one)["kd"].value
    reference = copy.deepcopy(student)
    torch.testing.assert_close(moved, kd(reference.train()(one.inputs), earlier(one.inputs), tau=2.0))
    assert student.training


def test_earlier_student_is_no_part_of_the_method() -> None:
    student = network()
    made = method(student)
    made.start_epoch(3)
    total(made.terms(batch(epoch=3, progress=0.5))).backward()
    assert list(made.state_dict()) == [f"student.{key}" for key in student.state_dict()]
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_engine_gives_the_share_of_each_epoch() -> None:
    made = method(network(), alpha=0.8)
    samples = InMemorySamples(torch.rand(12, 1, 8, 8), torch.arange(12) % 3)
    source = Batches(
        samples,
        batch_size=4,
        classes=3,
        preprocessing=Preprocessing(size=[8, 8], channels=1, mean=[0.5], std=[0.5]),
        seed=0,
    )
    settings = TrainSettings(epochs=4, lr=0.01, batch_size=4, warmup_epochs=0.0)
    history = fit(made, source, settings=settings, compute=ComputeSettings(device="cpu")).history
    kept = [record.terms["cross_entropy"].weighted / record.terms["cross_entropy"].raw for record in history]
    assert kept == pytest.approx([1.0, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_share_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValidationError, match="alpha"):
        Progressive.Options(alpha=alpha)
