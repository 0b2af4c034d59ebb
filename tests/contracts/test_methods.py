"""Every method of the catalog: prepares once, gives finite terms, leaves teachers alone, exports the student.

A method with options that it cannot do without says them in `tests/methods/case_<name>.py`:
    OPTIONS    values of its options for the networks here, which are `tiny`
    TEACHERS   how many; default 1
"""

from __future__ import annotations

import copy

import pytest
import torch
from cases import case
from torch import nn

from edgekd.catalog import CATALOGS
from edgekd.losses._base import Split
from edgekd.losses.cross_entropy import CrossEntropy
from edgekd.losses.hint import Hint
from edgekd.losses.kd import KD
from edgekd.methods._base import Batch, Context, Method, WeightedLoss
from edgekd.models.tiny import Tiny

NAMES = CATALOGS["methods"].names()


def network(width: int) -> nn.Module:
    return Tiny(Tiny.Options(width=width)).build(3, (1, 8, 8))


def losses() -> list[WeightedLoss]:
    return [
        WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 0.1),
        WeightedLoss("kd", KD(KD.Options()), 0.9),
        WeightedLoss("hint", Hint(Hint.Options(student_tap="layer1", teacher_tap="layer2")), 2.0),
    ]


def made(name: str, student: nn.Module) -> Method:
    member = CATALOGS["methods"].load(name).member
    teachers = [network(8) for _ in range(case("methods", name).get("TEACHERS", 1))] if member.needs_teacher else []
    context = Context(Split(torch.arange(12) % 3, 3), lambda index: network(4))
    method: Method = member(
        student, teachers, losses(), member.Options(**case("methods", name).get("OPTIONS", {})), context
    )
    return method


def prepared(name: str) -> Method:
    torch.manual_seed(0)
    method = made(name, network(4))
    method.prepare(torch.randn(2, 1, 8, 8))
    method.start_epoch(0)
    return method


def batch() -> Batch:
    # as `edgekd.batches` makes one for any way of sampling: the second half are the same classes, and two views of one
    labels = torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    return Batch(torch.randn(6, 1, 8, 8), labels, torch.tensor([0, 1, 2, 0, 1, 2]), epoch=0, progress=0.0)


def test_catalog_holds_the_first_methods():
    assert set(NAMES) >= {"offline", "alone"}


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_finite_scalars_and_train_the_student(name):
    method = prepared(name)
    terms = method.terms(batch())
    assert len(terms) >= 1
    assert all(term.value.shape == () and term.value.isfinite() for term in terms.values())
    torch.stack([term.value * term.weight for term in terms.values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in method.exported().parameters())


@pytest.mark.parametrize("name", NAMES)
def test_prepare_leaves_the_student_as_it_was(name):
    torch.manual_seed(0)
    student = network(4)
    before = copy.deepcopy(student.state_dict())
    made(name, student).prepare(torch.randn(2, 1, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_every_network_that_could_be_shipped_takes_the_students_weights(name):
    method = prepared(name)
    for other in method.candidates().values():
        other.load_state_dict(method.exported().state_dict())
        assert other(torch.randn(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_teachers_are_neither_trained_nor_moved_when_they_were_left_in_train_mode(name):
    method = prepared(name)
    for teacher in method.teachers:
        teacher.train()
    before = [copy.deepcopy(teacher.state_dict()) for teacher in method.teachers]
    torch.stack([term.value for term in method.terms(batch()).values()]).sum().backward()
    trained = {id(one) for module in method.trained() for one in module.parameters()}
    for teacher, state in zip(method.teachers, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())
        assert all(one.grad is None and id(one) not in trained for one in teacher.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_export_holds_no_teacher_and_no_connector(name):
    method = prepared(name)
    exported = {id(one) for one in method.exported().parameters()}
    others = {id(one) for module in (*method.teachers, method.connectors) for one in module.parameters()}
    assert exported.isdisjoint(others)
    assert method.exported()(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert not any("connector" in key for key in method.exported().state_dict())
