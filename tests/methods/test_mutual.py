from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
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
from torch import nn

from edgekd.errors import MismatchError, UsageError
from edgekd.losses.kd import kd as divergence
from edgekd.methods._base import Batch, Context, WeightedLoss
from edgekd.methods.mutual import Mutual


class Says(nn.Module):
    """A network of one parameter row: the same logits for every sample."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(inputs), -1)


def made(*, peers: int = 1, losses: list[WeightedLoss] | None = None, student: nn.Module | None = None) -> Mutual:
    chosen = losses or [cross_entropy(), kd(), hint(2.0, "layer1", "layer2")]
    method = Mutual(student or network(), [], chosen, Mutual.Options(peers=peers), context())
    method.prepare(EXAMPLE)
    return method


def test_terms_of_two_networks_are_those_worked_by_hand() -> None:
    # p_1 = (1/2, 1/2), p_2 = (3/4, 1/4) = softmax(ln 3, 0); the label is the first class
    two = Context(None, lambda index: Says(1.0986123, 0.0))
    method = Mutual(Says(0.0, 0.0), [], [cross_entropy(), kd()], None, two)
    inputs = torch.zeros(1, 2)
    method.prepare(inputs)
    terms = method.terms(Batch(inputs, torch.tensor([[1.0, 0.0]]), torch.zeros(1), epoch=0, progress=0.0))
    values = {name: round(term.value.item(), 4) for name, term in terms.items()}
    assert values == {
        "cross_entropy": 0.6931,  # ln 2
        "kd": 0.1308,  # KL(p_2 || p_1) = 3/4 ln 3/2 + 1/4 ln 1/2
        "cross_entropy@peer1": 0.2877,  # ln 4/3
        "kd@peer1": 0.1438,  # KL(p_1 || p_2) = 1/2 ln 2/3 + 1/2 ln 2
    }


def test_term_is_the_mean_over_the_other_networks() -> None:
    method, one = made(peers=2, losses=[cross_entropy(), kd(0.5, tau=2.0)]), batch()
    own, first, second = [net(one.inputs) for net in method.candidates().values()]
    term = method.terms(one)["kd@peer1"]
    assert term.weight == 0.5
    torch.testing.assert_close(term.value, (divergence(first, own, tau=2.0) + divergence(first, second, tau=2.0)) / 2)


def test_every_network_learns_and_none_is_moved_by_what_it_teaches() -> None:
    method = made(peers=2)
    terms = method.terms(batch())
    names = ["cross_entropy", "kd", "hint"]
    assert list(terms) == [*names, *(f"{name}@peer{peer}" for peer in (1, 2) for name in names)]
    own = sum(term.value for name, term in terms.items() if "@" not in name)
    assert isinstance(own, torch.Tensor)
    own.backward()
    assert all(one.grad is not None for one in method.student.parameters())
    assert all(one.grad is None for one in method.others.parameters())


def test_every_pair_has_a_connector_of_its_own() -> None:
    method = made(peers=2)
    total(method, batch()).backward()
    connectors = [one for module in (method.connectors, method.copies) for one in module.parameters()]
    assert len(connectors) == 6 * 2  # a weight and a bias for each ordered pair of three
    assert all(one.grad is not None for one in connectors)
    optimized = {id(one) for module in method.trained() for one in module.parameters()}
    assert optimized == {id(one) for one in method.parameters()}


def test_shipped_network_is_the_student_or_a_peer() -> None:
    method = made(peers=2)
    assert list(method.candidates()) == ["student", "peer1", "peer2"]
    assert method.candidates()["peer2"] is method.others[1]
    assert method.exported() is method.student
    weights = [tuple(net.state_dict()["fc.weight"].flatten().tolist()) for net in method.candidates().values()]
    assert len(set(weights)) == 3  # each starts somewhere else


def test_teachers_are_not_looked_at() -> None:
    class Fails(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    method = Mutual(network(), [Fails()], [cross_entropy(), kd()], None, context())
    method.prepare(EXAMPLE)
    assert method.teachers == []
    assert total(method, batch()).isfinite()


def test_run_trains_the_peers_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    method = made()
    before = copy.deepcopy(method.others.state_dict())
    fresh = Mutual(network(), [], [cross_entropy(), kd()], None, context())
    assert "kd@peer1" in trained(fresh).history[-1].terms
    assert not torch.equal(fresh.others.state_dict()["0.fc.weight"], before["0.fc.weight"])
    losses = lambda: [cross_entropy(), kd(), hint()]  # noqa: E731
    assert_resumes_equal(lambda: Mutual(network(), [], losses(), None, context()), tmp_path)


def test_int8_student_learns_with_float_peers_and_is_shipped_alone() -> None:
    student = int8_student(["layer1"])
    losses = [cross_entropy(), kd(), hint(1.0, "layer1", "layer2")]
    method = Mutual(student, [], losses, None, of_int8())
    before = copy.deepcopy(student.state_dict())
    terms = trained(method, hooks=int8_hooks()).history[-1].terms
    # the graph has no output `layer2`, so a peer has nothing to learn from there
    assert list(terms) == ["cross_entropy", "kd", "hint", "cross_entropy@peer1", "kd@peer1"]
    assert list(method.candidates()) == ["student"]
    assert method.exported() is student
    assert not torch.equal(student.state_dict()["module.model.fc.weight"], before["module.model.fc.weight"])


def test_error_when_peers_have_no_common_output() -> None:
    method = Mutual(network(), [], [kd()], None, context(peer=lambda index: network(3 if index == 1 else 7)))
    method.prepare(EXAMPLE)
    method = Mutual(network(), [], [kd()], Mutual.Options(peers=2), method.context)
    with pytest.raises(
        MismatchError, match=r"student and peer2 have no output in common: logits \(2, 3\) and \(2, 7\)"
    ):
        method.prepare(EXAMPLE)


def test_error_when_there_is_no_way_to_build_a_peer() -> None:
    method = Mutual(network(), [], [cross_entropy(), kd()])
    with pytest.raises(UsageError, match="Method 'mutual' trains further networks like the student, and nothing says"):
        method.prepare(EXAMPLE)


def test_error_when_nothing_can_be_taught() -> None:
    with pytest.raises(UsageError, match=r"Method 'mutual' needs a loss that needs a teacher: .* Got: cross_entropy\."):
        Mutual(network(), [], [cross_entropy()], None, context())


def test_error_suggests_a_tap_when_it_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"has no module 'layer7' to tap\. Did you mean 'layer"):
        made(losses=[hint(1.0, "layer1", "layer7")])
