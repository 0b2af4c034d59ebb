from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.errors import MismatchError, UsageError
from edgekd.losses.cross_entropy import CrossEntropy
from edgekd.losses.hint import Hint
from edgekd.losses.kd import KD, kd
from edgekd.methods._base import Batch, WeightedLoss
from edgekd.methods.offline import Offline
from edgekd.models.tiny import Tiny
from edgekd.taps import Tapped, TupleOutputs


def network(classes: int = 3) -> nn.Module:
    return Tiny(Tiny.Options(width=4)).build(classes, (1, 8, 8))


def hint(student: str = "layer1", teacher: str = "layer1") -> Hint:
    return Hint(Hint.Options(student_tap=student, teacher_tap=teacher))


def batch() -> Batch:
    return Batch(torch.randn(4, 1, 8, 8), torch.eye(3)[[0, 1, 2, 0]], torch.arange(4), epoch=0, progress=0.0)


EXAMPLE = torch.randn(2, 1, 8, 8)


def test_term_is_that_of_both_networks_on_the_same_batch():
    student, teacher, one = network(), network(), batch()
    method = Offline(student, [teacher], [WeightedLoss("kd", KD(KD.Options(tau=2.0)), 0.9)])
    method.prepare(EXAMPLE)
    student.eval()
    term = method.terms(one)["kd"]
    assert term.weight == 0.9
    torch.testing.assert_close(term.value, kd(student(one.inputs), teacher.eval()(one.inputs), tau=2.0))


def test_two_terms_of_one_loss_keep_their_own_names_and_connectors():
    losses = [WeightedLoss("hint", hint(), 1.0), WeightedLoss("hint", hint("layer2", "layer2"), 1.0)]
    method = Offline(network(), [network()], losses)
    method.prepare(EXAMPLE)
    assert list(method.terms(batch())) == ["hint", "hint#2"]
    assert [key.split(".")[0] for key in method.connectors.state_dict()] == ["hint", "hint", "hint#2", "hint#2"]


def test_users_loss_with_a_dotted_name_is_taken():
    method = Offline(network(), [network()], [WeightedLoss("my.package:Loss", KD(KD.Options()), 1.0)])
    method.prepare(EXAMPLE)
    assert list(method.terms(batch())) == ["my.package:Loss"]


def test_error_names_both_sides_when_classes_differ():
    method = Offline(network(3), [network(7)], [WeightedLoss("kd", KD(KD.Options()), 1.0)])
    with pytest.raises(MismatchError, match="Student and teacher disagree on classes: 3 and 7"):
        method.prepare(EXAMPLE)


def test_error_when_a_network_gives_no_logits():
    method = Offline(network(3), [nn.Identity()], [WeightedLoss("kd", KD(KD.Options()), 1.0)])
    with pytest.raises(MismatchError, match=r"The teacher gives an output of shape \(2, 1, 8, 8\)"):
        method.prepare(EXAMPLE)


def test_error_suggests_a_tap_when_it_is_unknown():
    method = Offline(network(), [network()], [WeightedLoss("hint", hint("layer3"), 1.0)])
    with pytest.raises(UsageError, match=r"has no module 'layer3' to tap\. Did you mean 'layer"):
        method.prepare(EXAMPLE)


def test_error_when_there_is_no_teacher():
    method = Offline(network(), [], [WeightedLoss("kd", KD(KD.Options()), 1.0)])
    with pytest.raises(UsageError, match="learns from a teacher, got none"):
        method.prepare(EXAMPLE)


def test_exported_graph_is_a_student_when_its_taps_are_outputs():
    student = network().eval()
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    graph = torch.export.export(Tapped(student, ["layer1"]), (EXAMPLE,), dynamic_shapes=dynamic).module()
    teacher, one = network(), batch()
    losses = [
        WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 1.0),
        WeightedLoss("hint", hint(), 1.0),
    ]
    values = []
    for network_ in (student, TupleOutputs(graph, ["layer1"])):
        torch.manual_seed(0)
        method = Offline(network_, [teacher], losses)
        method.prepare(EXAMPLE)
        values.append([term.value.item() for term in method.terms(one).values()])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
