from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from learning_together import (
    EXAMPLE,
    assert_resumes_equal,
    batch,
    context,
    cross_entropy,
    hint,
    int8_hooks,
    int8_student,
    kd,
    network,
    of_int8,
    total,
    trained,
)
from pydantic import ValidationError
from torch import Tensor, nn

from edgekd.errors import MismatchError, UsageError
from edgekd.losses.kd import kd as divergence
from edgekd.methods._agreed import best_mix, lowest_logits, mean_of_others, smallest_loss
from edgekd.methods._base import Batch, Context
from edgekd.methods.collaborative import Collaborative, views

HEADS = {"students": "heads", "student_tap": "layer1"}
PEERS = {"students": "peers"}


def unprepared(student: nn.Module | None = None, around: Context | None = None, **options: Any) -> Collaborative:
    chosen = Collaborative.Options(**options)
    return Collaborative(student or network(), [], [cross_entropy(0.5), kd(0.5, tau=2.0)], chosen, around or context())


def made(**options: Any) -> Collaborative:
    method = unprepared(**options)
    method.prepare(EXAMPLE)
    method.start_epoch(0)
    return method


def two_views() -> Batch:
    one = batch()
    half = torch.arange(3)
    return Batch(one.inputs, one.labels, torch.cat([half, half]), epoch=0, progress=0.0)


# what they agree on


def errors(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def some(count: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    logits = [3 * torch.randn(5, 4, generator=generator) for _ in range(count)]
    return logits, [torch.eye(4)[[0, 1, 2, 3, 0]]] * count


def test_soft_label_is_the_mean_of_the_others() -> None:
    first, second, third = mean_of_others([torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 4.0]]), torch.zeros(1, 2)])
    assert (first.tolist(), second.tolist(), third.tolist()) == ([[1.0, 2.0]], [[0.5, 0.0]], [[1.5, 2.0]])


def test_smallest_loss_is_picked_for_each_sample() -> None:
    logits, labels = some()
    each = torch.stack([errors(one, labels[0]) for one in logits])
    torch.testing.assert_close(errors(smallest_loss(logits, labels), labels[0]), each.amin(dim=0))
    assert len(set(each.argmin(dim=0).tolist())) > 1


def test_lowest_logits_are_better_than_the_best_network() -> None:
    logits, labels = some()
    best = torch.stack([errors(one, labels[0]) for one in logits]).amin(dim=0)
    agreed = lowest_logits(logits, labels)
    assert (errors(agreed, labels[0]) <= best).all()
    torch.testing.assert_close((agreed * labels[0]).sum(dim=1), torch.zeros(5))  # the label's own logit is 0


@pytest.mark.parametrize("count", [2, 3])
def test_best_mix_is_the_best_of_a_grid(count: int) -> None:
    logits, labels = some(count)
    soft = [0.7 * label + 0.075 for label in labels]  # a minimum inside, not at a corner
    found = errors(best_mix(logits, soft), soft[0])
    steps = torch.linspace(0, 1, 41).tolist()
    grid = [shares for shares in product(steps, repeat=count) if abs(sum(shares) - 1) < 1e-6]
    tried = torch.stack(
        [errors(sum(w * one for w, one in zip(shares, logits, strict=True)), soft[0]) for shares in grid]
    )
    assert len(grid) > 40
    assert (found <= tried.amin(dim=0) + 1e-4).all()  # the mix is to a millionth, and float32 adds its own


@pytest.mark.parametrize("agree", [smallest_loss, lowest_logits, best_mix])
def test_agreement_of_equal_networks_is_theirs_and_carries_no_gradient(
    agree: Callable[[list[Tensor], list[Tensor]], Tensor],
) -> None:
    logits, labels = some(1)
    one = logits[0].requires_grad_()
    agreed = agree([one, one, one], [labels[0]] * 3)
    assert not agreed.requires_grad
    torch.testing.assert_close(torch.softmax(agreed, dim=1), torch.softmax(one.detach(), dim=1))


# heads


def test_heads_learn_from_the_mean_of_the_others() -> None:
    method, one = made(**HEADS), batch()
    for net in (method.student, *method.others):
        net.eval()
    terms = method.terms(one)
    own, first, second = [net.eval()(one.inputs) for net in method.candidates().values()]
    assert list(terms) == [f"{loss}{head}" for head in ("", "@head1", "@head2") for loss in ("cross_entropy", "kd")]
    torch.testing.assert_close(terms["kd"].value, divergence(own, (first + second) / 2, tau=2.0))
    torch.testing.assert_close(terms["kd@head2"].value, divergence(second, (own + first) / 2, tau=2.0))


def test_gradient_of_shared_layers_is_the_mean_over_heads_and_of_heads_their_own() -> None:
    method, one = made(**HEADS), batch()
    networks = list(method.candidates().values())
    for net in (method.student, *method.others, *networks):
        net.eval()  # batch statistics stand still, so that both ways see the same
    total(method, one).backward()
    shared, head = method.student.stem[0].weight.grad.clone(), method.others[0].fc.weight.grad
    method.student.zero_grad()
    logits = [net(one.inputs) for net in networks]
    others = mean_of_others(logits)
    plain = [
        0.5 * errors(own, one.labels).mean() + 0.5 * divergence(own, other, tau=2.0)
        for own, other in zip(logits, others, strict=True)
    ]
    torch.stack(plain).sum().backward()
    each = torch.stack([net.stem[0].weight.grad for net in networks])
    torch.testing.assert_close(shared, each.mean(dim=0))
    torch.testing.assert_close(head, networks[1].fc.weight.grad)


def test_int8_gradient_of_shared_layers_is_divided_too() -> None:
    """The graph's tap is the tensor that the graph goes on with, not a copy aside."""
    values = []
    for others in (1, 3):
        method = unprepared(int8_student(["layer1"]), of_int8(), others=others, **HEADS)
        method.prepare(EXAMPLE)
        method.start_epoch(0)
        terms = method.terms(batch())
        terms["cross_entropy"].value.backward()
        grads = {name: one.grad for name, one in method.student.named_parameters()}
        values.append((grads["module.model.stem.0.weight"], grads["module.model.fc.weight"]))
    torch.testing.assert_close(values[0][0], 2 * values[1][0])
    torch.testing.assert_close(values[0][1], values[1][1])


# networks of their own


@pytest.mark.parametrize("target", ["min_loss", "min_logit", "best_mix"])
def test_networks_learn_from_one_target(target: str) -> None:
    method, one = made(target=target, **PEERS), batch()
    terms = method.terms(one)
    logits = [net(one.inputs) for net in method.candidates().values()]
    agree = {"min_loss": smallest_loss, "min_logit": lowest_logits, "best_mix": best_mix}[target]
    agreed = agree(logits, [one.labels] * 3)
    for name, own in zip(["", "@peer1", "@peer2"], logits, strict=True):
        torch.testing.assert_close(terms[f"kd{name}"].value, divergence(own, agreed, tau=2.0))


def test_networks_see_the_two_views_in_turn() -> None:
    method, one = made(target="min_loss", **PEERS), two_views()
    terms = method.terms(one)
    first, second = one.inputs[:3], one.inputs[3:]
    logits = [net(part) for net, part in zip(method.candidates().values(), (first, second, first), strict=True)]
    agreed = smallest_loss(logits, [one.labels[:3], one.labels[3:], one.labels[:3]])
    for name, own in zip(["", "@peer1", "@peer2"], logits, strict=True):
        torch.testing.assert_close(terms[f"kd{name}"].value, divergence(own, agreed, tau=2.0))


def test_views_are_told_by_the_ids() -> None:
    found = views(two_views())
    assert found is not None
    assert [part.ids.tolist() for part in found] == [[0, 1, 2], [0, 1, 2]]
    assert views(batch()) is None
    assert views(batch(5)) is None
    assert views(replace(batch(1), inputs=torch.zeros(0, 1, 8, 8), ids=torch.zeros(0))) is None


@pytest.mark.parametrize("kind", [HEADS, PEERS])
def test_all_are_trained_and_one_is_shipped(kind: dict[str, Any]) -> None:
    method = made(**kind)
    total(method, batch()).backward()
    parameters = [one for module in method.trained() for one in module.parameters()]
    assert all(one.grad is not None for one in parameters)
    assert {id(one) for one in parameters} == {id(one) for one in method.parameters()}
    name = kind["students"][:-1]
    found = method.candidates()
    assert list(found) == ["student", f"{name}1", f"{name}2"]
    same = torch.equal(found[f"{name}1"].state_dict()["stem.0.weight"], method.student.state_dict()["stem.0.weight"])
    assert same == (kind is HEADS)
    assert method.exported() is method.student


@pytest.mark.parametrize("options", [HEADS, {**PEERS, "target": "best_mix"}])
def test_run_resumes_to_the_same_weights(options: dict[str, Any], tmp_path: Path) -> None:
    assert_resumes_equal(lambda: unprepared(**options), tmp_path)


@pytest.mark.parametrize("options", [HEADS, {**PEERS, "target": "min_logit"}])
def test_int8_student_learns_and_is_shipped_alone(options: dict[str, Any]) -> None:
    student = int8_student(["layer1"] if options["students"] == "heads" else [])
    method = unprepared(student, of_int8(), **options)
    before = copy.deepcopy(student.state_dict())
    terms = trained(method, hooks=int8_hooks()).history[-1].terms
    assert len(terms) == 6
    assert list(method.candidates()) == ["student"]
    assert not torch.equal(student.state_dict()["module.model.stem.0.weight"], before["module.model.stem.0.weight"])


# bad input


def test_error_when_heads_have_no_tap_or_networks_have_one() -> None:
    for options in ({"students": "heads"}, {"students": "peers", "student_tap": "layer1"}):
        with pytest.raises(ValidationError, match="students = 'heads' and student_tap belong together"):
            Collaborative.Options(**options)


def test_error_when_the_target_needs_labels_that_are_not_there() -> None:
    method = Collaborative(
        network(), [], [kd()], Collaborative.Options(target="min_loss", **PEERS), context(labelled=False)
    )
    with pytest.raises(UsageError, match="target = 'min_loss' needs labels, but the training split has samples"):
        method.prepare(EXAMPLE)


def test_error_when_a_network_has_other_classes() -> None:
    with pytest.raises(
        MismatchError, match=r"student and peer1 have no output in common: logits \(2, 3\) and \(2, 7\)"
    ):
        unprepared(around=context(peer=lambda index: network(7)), **PEERS).prepare(EXAMPLE)
    with pytest.raises(MismatchError, match=r"differ as logits: \(2, 3\) and \(2, 7\)"):
        unprepared(around=context(peer=lambda index: network(7)), **HEADS).prepare(EXAMPLE)


def test_error_when_there_is_no_way_to_build_a_network() -> None:
    with pytest.raises(UsageError, match="Method 'collaborative' trains further networks like the student"):
        unprepared(around=Context(), **PEERS).prepare(EXAMPLE)


def test_error_when_nothing_is_taught_by_logits() -> None:
    with pytest.raises(UsageError, match=r"needs a loss that needs a teacher's logits: .* Got: cross_entropy, hint\."):
        Collaborative(network(), [], [cross_entropy(), hint()], Collaborative.Options(**HEADS), context())


def test_error_suggests_a_tap_when_it_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"has no module 'layer7' to tap\. Did you mean 'layer"):
        unprepared(students="heads", student_tap="layer7").prepare(EXAMPLE)
