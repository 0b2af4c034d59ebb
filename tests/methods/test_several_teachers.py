"""Several teachers: how they are mixed, worked by hand, and what the student keeps of them."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from edgekd.errors import MismatchError, UsageError
from edgekd.losses._base import Outputs, Split, Step, mixed
from edgekd.losses.cross_entropy import CrossEntropy
from edgekd.losses.hint import Hint
from edgekd.losses.kd import KD, kd
from edgekd.methods._base import Batch, Context, Method, WeightedLoss
from edgekd.methods._panel import confident_shares, mixture
from edgekd.methods.assistant import Assistant
from edgekd.methods.hydra import Hydra
from edgekd.methods.offline import Offline
from edgekd.models.tiny import Tiny

EXAMPLE = torch.zeros(2, 1, 8, 8)


def network(seed: int, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return Tiny(Tiny.Options(width=width)).build(3, (1, 8, 8))


def batch(seed: int = 0) -> Batch:
    inputs = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Batch(inputs, torch.eye(3)[[0, 1, 2, 0, 1, 2]], torch.arange(6), epoch=0, progress=0.0)


def kd_term(tau: float = 2.0) -> WeightedLoss:
    return WeightedLoss("kd", KD(KD.Options(tau=tau)), 1.0)


def offline(teachers: list[nn.Module], losses: list[WeightedLoss], **options: object) -> Offline:
    method = Offline(network(0).eval(), teachers, losses, Offline.Options(**options))
    method.prepare(EXAMPLE)
    return method


# mixing


def test_probabilities_are_averaged_and_not_logits() -> None:
    # p = (0.9, 0.1) and (0.5, 0.5): the mean is (0.7, 0.3); of the logits 2.197 and 0 it would be (0.75, 0.25)
    one, two = torch.tensor([[math.log(9.0), 0.0]]), torch.zeros(1, 2)
    found = mixture([Outputs(one), Outputs(two)], torch.tensor([[0.5, 0.5]])).logits.exp()
    assert found[0].tolist() == pytest.approx([0.7, 0.3])


def test_shares_count_by_sample_and_one_of_zero_leaves_its_teacher_out() -> None:
    logs = [torch.randn(4, 3).log_softmax(1), torch.randn(4, 3).log_softmax(1)]
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75], [0.5, 0.5]])
    found = mixed(logs, shares)
    wanted = (shares[:, :1] * logs[0].exp() + shares[:, 1:] * logs[1].exp()).log()
    torch.testing.assert_close(found, wanted)


def test_confident_shares_are_the_ones_worked_by_hand() -> None:
    # cross-entropies ln 2 and ln 4 at the label: softmax is (1/3, 2/3), so the shares are 1 - that
    near, far = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    found = confident_shares([Outputs(near), Outputs(far)], torch.tensor([[1.0, 0.0]]))
    assert found[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    alone = confident_shares([Outputs(near)], torch.tensor([[1.0, 0.0]]))
    assert alone.tolist() == [[1.0]]


def test_softened_targets_are_the_mean_of_softened_probabilities() -> None:
    one, two = torch.randn(4, 3), torch.randn(4, 3)
    shares = torch.full((4, 2), 0.5)
    step = Step(Outputs(one), (Outputs(one), Outputs(two)), torch.eye(3)[[0, 1, 2, 0]], torch.arange(4), 0, 0.0, shares)
    wanted = ((one / 4).softmax(1) + (two / 4).softmax(1)) / 2
    torch.testing.assert_close(step.log_targets(4.0).exp(), wanted)


# offline


def test_the_same_teacher_twice_is_that_teacher() -> None:
    once, twice = offline([network(1)], [kd_term()]), offline([network(1), network(1)], [kd_term()])
    torch.testing.assert_close(once.terms(batch())["kd"].value, twice.terms(batch())["kd"].value)


def test_all_shares_for_one_teacher_are_that_teacher() -> None:
    method = offline([network(1), network(2)], [kd_term()], weighting="fixed", shares=[0.0, 3.0])
    alone = offline([network(2)], [kd_term()])
    torch.testing.assert_close(method.terms(batch())["kd"].value, alone.terms(batch())["kd"].value)


def test_gradient_is_the_mean_of_the_teachers_gradients() -> None:
    gradients = []
    for teachers in ([network(1)], [network(2)], [network(1), network(2)]):
        method = offline(teachers, [kd_term()])
        method.terms(batch())["kd"].value.backward()
        gradients.append(method.student.fc.weight.grad)
    torch.testing.assert_close((gradients[0] + gradients[1]) / 2, gradients[2])


def test_a_tap_of_the_second_teacher_is_named_by_its_number() -> None:
    hint = Hint(Hint.Options(student_tap="layer1", teacher_tap="2:layer2"))
    method = offline([network(1, width=2), network(2, width=8)], [WeightedLoss("hint", hint, 1.0)])
    assert hint.connector.out_channels == 32  # layer2 of the wider one
    assert method.terms(batch())["hint"].value.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "fixed"}, "belong together"),
        ({"shares": [1.0, 1.0]}, "belong together"),
        ({"weighting": "fixed", "shares": [1.0, -1.0]}, "must not be negative"),
        ({"weighting": "fixed", "shares": [0.0, 0.0]}, "nor all be 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Offline.Options(**options)


def test_errors_name_what_is_missing() -> None:
    with pytest.raises(UsageError, match="has 3 values for 2 teachers"):
        offline([network(1), network(2)], [kd_term()], weighting="fixed", shares=[1.0, 1.0, 1.0])
    hint = Hint(Hint.Options(student_tap="layer1", teacher_tap="3:layer2"))
    with pytest.raises(UsageError, match="Tap '3:layer2' is of teacher 3, but there are only 2"):
        offline([network(1), network(2)], [WeightedLoss("hint", hint, 1.0)])
    unlabelled = Context(Split(torch.tensor([0, -1, 2]), 3))
    by_label = Offline(network(0), [network(1)], [kd_term()], Offline.Options(weighting="confidence"), unlabelled)
    with pytest.raises(UsageError, match="needs labels"):
        by_label.prepare(EXAMPLE)
    wrong = Tiny(Tiny.Options(width=4)).build(5, (1, 8, 8))
    with pytest.raises(MismatchError, match="disagree on classes: 3 and 5"):
        offline([network(1), wrong], [kd_term()])


# assistant


def test_a_chain_learns_from_its_last_only() -> None:
    method = Assistant(network(0).eval(), [network(1), network(2)], [kd_term()])
    method.prepare(EXAMPLE)
    alone = offline([network(2)], [kd_term()])
    torch.testing.assert_close(method.terms(batch())["kd"].value, alone.terms(batch())["kd"].value)


def test_a_dense_chain_leaves_some_out_and_never_the_last() -> None:
    options = Assistant.Options(dense=True, drop=0.5)
    method = Assistant(network(0), [network(1), network(2), network(3)], [kd_term()], options)
    method.prepare(EXAMPLE)
    torch.manual_seed(0)
    drawn = {tuple(method._shares([Outputs(torch.zeros(1, 3))] * 3, torch.zeros(1, 3))[0].tolist()) for _ in range(64)}
    assert len(drawn) == 4  # the first two in or out
    assert all(shares[-1] > 0 and sum(shares) == pytest.approx(1.0) for shares in drawn)
    method.eval()
    assert method._shares([Outputs(torch.zeros(1, 3))] * 3, torch.zeros(1, 3))[0].tolist() == pytest.approx([1 / 3] * 3)


# hydra


def hydra(losses: list[WeightedLoss], tap: str = "flatten") -> Hydra:
    method = Hydra(network(0).eval(), [network(1), network(2)], losses, Hydra.Options(student_tap=tap))
    method.prepare(EXAMPLE)
    return method


def test_student_is_the_mean_of_its_heads_whatever_they_learned() -> None:
    method = hydra([kd_term()])
    for layer in method.corrections.parameters():
        nn.init.normal_(layer)
    student = Outputs(torch.randn(6, 3), {"flatten": torch.randn(6, 16)})
    heads = method.heads(student)
    assert not torch.allclose(heads[0], heads[1])
    torch.testing.assert_close(torch.stack(heads).mean(0), student.logits)


def test_every_head_learns_from_its_own_teacher() -> None:
    method = hydra([kd_term(), WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 0.5)])
    one = batch()
    logits: Tensor = method.student(one.inputs)
    targets = [teacher.eval()(one.inputs) for teacher in method.teachers]
    terms = method.terms(one)
    wanted = (kd(logits, targets[0], tau=2.0) + kd(logits, targets[1], tau=2.0)) / 2
    torch.testing.assert_close(terms["kd"].value, wanted)
    assert terms["cross_entropy"].weight == 0.5


def test_heads_come_apart_in_training() -> None:
    method: Method = hydra([kd_term()])
    optimizer = torch.optim.SGD([one for module in method.trained() for one in module.parameters()], lr=0.5)
    first = None
    for _ in range(10):
        value = method.terms(batch())["kd"].value
        first = float(value.detach()) if first is None else first
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert float(value.detach()) < first
    assert float(method.corrections[0].weight.detach().abs().sum()) > 0


def test_hydra_needs_features() -> None:
    three = nn.Sequential(nn.Flatten(2), nn.Flatten(), nn.Linear(64, 3))
    method = Hydra(three, [network(1)], [kd_term()], Hydra.Options(student_tap="0"))
    with pytest.raises(MismatchError, match="Tap the module before the classifier"):
        method.prepare(EXAMPLE)
