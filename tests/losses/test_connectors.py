"""What the feature losses share: the batch norm of connectors, and pairs of maps of one size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from edgekd import _group
from edgekd.errors import MismatchError
from edgekd.losses import _connectors
from edgekd.losses._base import Outputs, Step
from edgekd.losses._connectors import BatchNorm, projection
from edgekd.losses._pairs import PairedLoss, PairOptions


class Distance(PairedLoss):
    """The plainest loss on pairs."""

    family = "feature"

    def forward(self, step: Step) -> Tensor:
        return torch.stack([(ours - theirs).square().mean() for ours, theirs in self._maps(step)]).sum()


class MapsOnly(Distance):
    takes_vectors = False


def step(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Step:
    size = len(next(iter(student.values())))
    logits = torch.zeros(size, 2)
    return Step(Outputs(logits, student), (Outputs(logits, teacher),), logits, torch.arange(size), 0, 0.0)


def moved(norm: BatchNorm) -> BatchNorm:
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.normal_()
    return norm


def test_batch_norm_worked_by_hand():
    # channel values 1 and 3: mean 2, variance 1; times 2, plus 1
    norm = BatchNorm(1)
    norm.weight.data.fill_(2.0)
    norm.bias.data.fill_(1.0)
    given = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(norm(given).flatten(), torch.tensor([-1.0, 3.0]), atol=2e-5, rtol=0)  # eps is 1e-5


def test_batch_norm_and_its_gradients_are_the_same_when_processes_share_the_batch(monkeypatch):
    whole = torch.randn(7, 3, 4, 2) * 5 + 3
    norm, upstream = moved(BatchNorm(3)), torch.randn(7, 3, 4, 2)
    given = whole.clone().requires_grad_()
    norm(given).backward(upstream)
    expected = norm(whole).detach(), given.grad, norm.weight.grad.clone()
    norm.zero_grad()

    parts = [part.clone().requires_grad_() for part in whole.split([4, 3])]
    rows: list[Tensor] = []
    monkeypatch.setattr(_group, "count", lambda: 2)
    monkeypatch.setattr(_connectors, "gathered", lambda row: rows.append(row) or row)
    for part in parts:  # every process puts its row down
        norm(part)
    monkeypatch.setattr(_connectors, "gathered", lambda row: torch.cat(rows))
    together = torch.cat([norm(part) for part in parts])
    together.backward(upstream)
    for found, wanted in zip(
        (together, torch.cat([part.grad for part in parts]), norm.weight.grad), expected, strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_batch_norm_gives_its_shift_when_a_channel_has_one_value():
    norm = moved(BatchNorm(3))
    given = torch.randn(1, 3, 1, 1, requires_grad=True)
    torch.testing.assert_close(norm(given).flatten(), norm.bias)
    norm(given).sum().backward()
    assert given.grad.isfinite().all()


def test_batch_norm_is_float32_when_maps_are_half():
    given = torch.randn(4, 2, 3, 3)
    norm = BatchNorm(2)
    assert norm(given.half()).dtype == torch.float32
    torch.testing.assert_close(norm(given.half()), norm(given), atol=1e-2, rtol=1e-2)


def test_projection_is_a_convolution_and_a_batch_norm():
    given = torch.randn(4, 3, 5, 5)
    layers = projection(3, 6)
    expected = F.batch_norm(F.conv2d(given, layers[0].weight), None, None, training=True)
    torch.testing.assert_close(layers(given), expected)


def test_maps_are_averaged_to_the_smaller_of_each_side():
    taps = {"a": torch.arange(8.0).view(1, 1, 2, 4)}, {"b": torch.zeros(1, 1, 4, 2, requires_grad=True)}
    loss = Distance(PairOptions(student_taps=["a"], teacher_taps=["b"]))
    ((ours, theirs),) = loss._maps(step(*taps))
    assert ours.tolist() == [[[[0.5, 2.5], [4.5, 6.5]]]]  # means of two neighbours in a row
    assert theirs.shape == (1, 1, 2, 2)
    assert not theirs.requires_grad


def test_vectors_are_maps_of_one_position():
    taps = {"a": torch.randn(2, 3)}, {"b": torch.randn(2, 3)}
    loss = Distance(PairOptions(student_taps=["a"], teacher_taps=["b"]))
    given = step(*taps)
    loss.connect(given.student, given.teacher)
    torch.testing.assert_close(loss(given), (taps[0]["a"] - taps[1]["b"]).square().mean())


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "said"),
    [
        (Distance, (2, 3), (2, 3, 4, 4), r"'a' of shape \(2, 3\) and teacher tap 'b' of shape \(2, 3, 4, 4\)"),
        (Distance, (2, 3, 4), (2, 3, 4), r"Tap two layers with \(B, C, H, W\), or two with \(B, C\)\."),
        (MapsOnly, (2, 3), (2, 3), r"Tap two layers with \(B, C, H, W\)\."),
    ],
)
def test_error_names_both_taps_when_they_cannot_be_joined(kind, ours, theirs, said):
    given = step({"a": torch.zeros(ours)}, {"b": torch.zeros(theirs)})
    with pytest.raises(MismatchError, match=said):
        kind(PairOptions(student_taps=["a"], teacher_taps=["b"])).connect(given.student, given.teacher)


def test_error_when_taps_do_not_pair_up():
    with pytest.raises(ValidationError, match="must pair up, got 2 and 1"):
        PairOptions(student_taps=["a", "c"], teacher_taps=["b"])
    with pytest.raises(ValidationError, match="at least 1"):
        PairOptions(student_taps=[], teacher_taps=[])
