from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from edgekd.errors import MismatchError, UsageError
from edgekd.losses.cross_entropy import CrossEntropy, cross_entropy
from edgekd.losses.kd import KD, kd
from edgekd.methods._base import Batch, WeightedLoss
from edgekd.methods.two_views import TwoViews, mean_discrepancy
from edgekd.models.tiny import Tiny


def network() -> nn.Module:
    return Tiny(Tiny.Options(width=4)).build(3, (1, 8, 8))


def method(student: nn.Module, *, tau: float = 3.0, **options: Any) -> TwoViews:
    losses = [
        WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 1.0),
        WeightedLoss("kd", KD(KD.Options(tau=tau)), 0.5),
    ]
    return TwoViews(student, [], losses, TwoViews.Options(**options))


def batch(ids: list[int]) -> Batch:
    chosen = torch.tensor(ids)
    return Batch(torch.randn(len(ids), 1, 8, 8), torch.eye(3)[chosen % 3], chosen, epoch=0, progress=0.0)


class Same(nn.Module):
    """Logits are the inputs, and so are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.features(inputs) * 1.0


def test_terms_are_those_worked_by_hand() -> None:
    made = method(Same(), tau=1.0, features_tap="features")
    inputs = torch.tensor([[0.0, 0.0], [math.log(9.0), 0.0]])
    made.prepare(inputs)
    terms = made.terms(Batch(inputs, torch.tensor([[1.0, 0.0]] * 2), torch.tensor([5, 5]), epoch=0, progress=0.0))
    values = {name: (round(term.value.item(), 4), term.weight) for name, term in terms.items()}
    assert values == {
        "cross_entropy": (0.3993, 1.0),  # (ln 2 - ln 0.9) / 2
        "kd": (0.4394, 0.5),  # (0.9 ln 1.8 + 0.1 ln 0.2 + 0.5 ln (5 / 9) + 0.5 ln 5) / 2 = (0.3681 + 0.5108) / 2
        "features": (2.4139, 5e-4),  # (ln 9)^2 / 2
    }


def test_terms_are_half_of_the_published_sums_over_both_views() -> None:
    student, one = network(), batch([3, 4, 5, 3, 4, 5])
    made = method(student, features_tap="layer2")
    made.prepare(one.inputs)
    student.eval()
    terms = made.terms(one)
    first, second = (student(part) for part in one.inputs.split(3))
    labels = one.labels[:3]
    torch.testing.assert_close(2 * terms["kd"].value, kd(first, second, tau=3.0) + kd(second, first, tau=3.0))
    both = cross_entropy(first, labels) + cross_entropy(second, labels)
    torch.testing.assert_close(2 * terms["cross_entropy"].value, both)
    features = [nn.Sequential(student.stem, student.layer1, student.layer2)(part) for part in one.inputs.split(3)]
    apart = features[0].mean(dim=(0, 2, 3)) - features[1].mean(dim=(0, 2, 3))
    torch.testing.assert_close(2 * terms["features"].value, apart.square().sum())


def test_views_can_be_swapped() -> None:
    student, one = network(), batch([3, 4, 3, 4])
    made = method(student, features_tap="layer2")
    made.prepare(one.inputs)
    student.eval()
    swapped = Batch(one.inputs[[2, 3, 0, 1]], one.labels, one.ids, epoch=0, progress=0.0)
    for ours, theirs in zip(made.terms(one).values(), made.terms(swapped).values(), strict=True):
        torch.testing.assert_close(ours.value, theirs.value)


def test_equal_views_agree() -> None:
    student, one = network(), batch([3, 4, 3, 4])
    one.inputs[2:] = one.inputs[:2]
    made = method(student, features_tap="avgpool")
    made.prepare(one.inputs)
    student.eval()
    terms = made.terms(one)
    assert terms["kd"].value.item() == pytest.approx(0.0, abs=1e-6)
    assert terms["features"].value.item() == 0.0


def test_gradient_flows_into_both_views() -> None:
    student, one = network(), batch([3, 4, 3, 4])
    made = method(student)
    made.prepare(one.inputs)
    student.eval()
    one.inputs.requires_grad_(True)
    made.terms(one)["kd"].value.backward()
    assert one.inputs.grad is not None
    assert bool((one.inputs.grad.abs().sum(dim=(1, 2, 3)) > 0).all())


def test_features_are_left_out_when_no_tap_is_named() -> None:
    made = method(network())
    made.prepare(torch.randn(2, 1, 8, 8))
    assert list(made.terms(batch([3, 4, 3, 4]))) == ["cross_entropy", "kd"]
    assert TwoViews.student_taps(TwoViews.Options()) == ()
    assert TwoViews.student_taps(TwoViews.Options(features_tap="a")) == ("a",)


def test_discrepancy_is_that_of_the_means_alone() -> None:
    values = torch.randn(6, 4)
    assert mean_discrepancy(values, values[torch.randperm(6)]).item() == pytest.approx(0.0, abs=1e-10)
    moved = mean_discrepancy(values, values + torch.tensor([1.0, 0.0, 2.0, 0.0]))
    assert moved.item() == pytest.approx(2.5)


@pytest.mark.parametrize("ids", [[3, 4, 4, 3], [3, 4, 3], [1, 2, 3, 4]])
def test_error_when_the_second_half_is_not_the_first(ids: list[int]) -> None:
    made = method(network())
    made.prepare(torch.randn(2, 1, 8, 8))
    with pytest.raises(UsageError, match=r"samples of a batch's first half again.*'two_views'"):
        made.terms(batch(ids))


def test_error_when_the_tap_gives_no_features() -> None:
    student = network()
    student.avgpool = nn.Sequential(student.avgpool, nn.Flatten(2))
    with pytest.raises(MismatchError, match=r"two_views needs features .* tap 'avgpool' gives \(2, 16, 1\)"):
        method(student, features_tap="avgpool").prepare(torch.randn(2, 1, 8, 8))


def test_negative_weight_is_refused() -> None:
    with pytest.raises(ValidationError, match="features_weight"):
        TwoViews.Options(features_weight=-1.0)
