"""What every loss on the relations of a batch must take: layers of any shape, one sample, dead samples."""

from __future__ import annotations

import pytest
import torch

from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step
from edgekd.losses._relations import embedding, unit
from edgekd.losses.correlation_congruence import CorrelationCongruence
from edgekd.losses.pkt import PKT
from edgekd.losses.rkd_angle import RKDAngle
from edgekd.losses.rkd_distance import RKDDistance
from edgekd.losses.similarity_preserving import SimilarityPreserving

LOSSES = [RKDDistance, RKDAngle, SimilarityPreserving, CorrelationCongruence, PKT]
SHAPES = [(4, 3, 3), (5, 6), (7,)]


def made(member: type[Loss]) -> Loss:
    if member is SimilarityPreserving:
        return member(member.Options(student_taps=["s"], teacher_taps=["t"]))
    return member(member.Options(student_tap="s", teacher_tap="t"))


def outputs(tap: str, values: torch.Tensor) -> Outputs:
    return Outputs(torch.zeros(len(values), 2), {tap: values})


def step(student: torch.Tensor, teacher: torch.Tensor) -> Step:
    size = len(student)
    return Step(outputs("s", student), (outputs("t", teacher),), torch.zeros(size, 2), torch.arange(size), 0, 0.0)


@pytest.mark.parametrize("member", LOSSES)
@pytest.mark.parametrize("theirs", SHAPES)
@pytest.mark.parametrize("ours", SHAPES)
def test_layers_of_any_shape_and_size_are_compared_without_a_connector(member, ours, theirs):
    student, teacher = torch.randn(6, *ours, requires_grad=True), torch.randn(6, *theirs)
    loss, given = made(member), step(student, teacher)
    loss.connect(given.student, given.teacher)
    loss(given).backward()
    assert list(loss.parameters()) == []
    assert loss(given) > 0
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("member", LOSSES)
@pytest.mark.parametrize("size", [1, 2])
def test_value_and_gradient_are_finite_when_the_batch_is_tiny(member, size):
    student = torch.randn(size, 5, requires_grad=True)
    value = made(member)(step(student, torch.randn(size, 3)))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    if size == 1:
        assert value.item() == pytest.approx(0, abs=1e-10)  # cosines of 1 are rounded


@pytest.mark.parametrize("member", LOSSES)
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_gradient_stays_small_when_samples_are_zero_or_equal(member, dead):
    student, teacher = torch.randn(6, 5), torch.randn(6, 3)
    for side in [student] * (dead != "teacher") + [teacher] * (dead != "student"):
        side[0] = 0
        side[1] = 0
        side[3] = side[2]
    student.requires_grad_()
    value = made(member)(step(student, teacher))
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("member", LOSSES)
def test_gradient_is_finite_when_all_samples_are_the_same(member):
    student = torch.ones(5, 4, requires_grad=True)
    value = made(member)(step(student, torch.randn(5, 3)))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("member", LOSSES)
def test_value_does_not_depend_on_the_scale_of_either_side(member):
    student, teacher = torch.randn(6, 5), torch.randn(6, 3)
    expected = made(member)(step(student, teacher))
    torch.testing.assert_close(made(member)(step(1e3 * student, 1e-3 * teacher)), expected)


@pytest.mark.parametrize("member", LOSSES)
def test_a_few_steps_bring_the_student_nearer(member):
    student, teacher = torch.randn(8, 5, requires_grad=True), torch.randn(8, 3)
    loss, given = made(member), step(student, teacher)
    first = loss(given).item()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(loss(given), student)
        with torch.no_grad():
            student -= 0.3 * gradient / gradient.norm()
    assert loss(given).item() < 0.7 * first


@pytest.mark.parametrize("member", LOSSES)
def test_products_are_not_run_in_half_precision_by_autocast(member):
    given = step(torch.randn(6, 50), torch.randn(6, 40))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = made(member)(given)
    assert value == made(member)(given)


@pytest.mark.parametrize("member", LOSSES)
def test_error_names_both_taps_and_shapes_when_one_is_no_embedding(member):
    given = step(torch.zeros(4), torch.zeros(4, 3))
    with pytest.raises(
        MismatchError,
        match=rf"{member.__module__.split('.')[-1]} needs .* student 's' has \(4,\), teacher 't' has \(4, 3",
    ):
        made(member).connect(given.student, given.teacher)


def test_embedding_is_pooled_over_positions_or_tokens_and_keeps_every_value_otherwise():
    maps, tokens, vectors = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 3), torch.randn(2, 3)
    torch.testing.assert_close(embedding(maps, pool=True), maps.flatten(2).mean(2))
    torch.testing.assert_close(embedding(tokens, pool=True), tokens.mean(1))
    assert embedding(vectors, pool=True).equal(vectors)
    assert [embedding(one, pool=False).shape[1] for one in (maps, tokens, vectors)] == [60, 18, 3]


def test_unit_vectors_have_length_one_and_a_zero_vector_stays_and_gets_no_gradient():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-9, 4e-9]], requires_grad=True)
    result = unit(vectors)
    torch.testing.assert_close(result, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]]))
    result[1].sum().backward()
    assert vectors.grad.abs().sum() == 0
