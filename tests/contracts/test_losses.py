"""Every loss of the catalog: scalar, finite in half precision, no gradient to the teacher, every option counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgekd.catalog import CATALOGS
from edgekd.losses._base import Loss, Outputs, Step

NAMES = CATALOGS["losses"].names()
WITH_TEACHER = [name for name in NAMES if CATALOGS["losses"].load(name).member.needs_teacher]
TAPS = {"wide": (6, 6), "small": (3, 3)}  # height and width of each tap


def member(name: str) -> type[Loss]:
    return CATALOGS["losses"].load(name).member


def values_for(name: str) -> dict[str, object]:
    """Options for any loss: taps are told by their names."""
    fields = member(name).Options.model_fields
    values: dict[str, object] = {option: ["wide", "small"] for option in fields if option.endswith("_taps")}
    return values | {option: "wide" for option in fields if option.endswith("_tap")}


def changed(option: str, value: object) -> object:
    if option.endswith("_taps"):
        return ["small", "wide"]
    if option.endswith("_tap"):
        return "small"
    if isinstance(value, bool):
        return not value
    assert isinstance(value, (int, float)), f"say here how to change option '{option}'"
    return value * 2 + 1


def outputs(seed: int, *, batch: int = 5, channels: int = 4, scale: float = 1.0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_()

    return Outputs(draw(batch, 3), {name: draw(batch, channels, *size) for name, size in TAPS.items()})


def step(student: Outputs, teacher: Outputs) -> Step:
    size = len(student.logits)
    labels = torch.eye(3)[torch.arange(size) % 3]
    return Step(student, (teacher,), labels, torch.arange(size), epoch=0, progress=0.0)


def connected(name: str, student: Outputs, teacher: Outputs, **changes: object) -> Loss:
    torch.manual_seed(0)
    loss = member(name)(member(name).Options(**(values_for(name) | changes)))
    loss.connect(student, teacher if loss.needs_teacher else None)
    return loss


def mapped(one: Outputs, change) -> Outputs:
    return Outputs(change(one.logits), {name: change(tap) for name, tap in one.taps.items()})


def test_catalog_holds_the_first_losses():
    assert set(NAMES) >= {"cross_entropy", "kd", "hint", "attention"}
    assert len(WITH_TEACHER) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_one_float32_number_and_states_its_family(name):
    student, teacher = outputs(0), outputs(1, channels=7)
    value = connected(name, student, teacher)(step(student, teacher))
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.item() > 0
    assert member(name).family in {"response", "feature", "relation", "attention", "graph"}


@pytest.mark.parametrize("name", NAMES)
def test_gradient_goes_to_student_and_connector_and_never_to_the_teacher(name):
    student, teacher = outputs(0), outputs(1, channels=7)
    loss = connected(name, student, teacher)
    loss(step(student, teacher)).backward()
    received = [tensor.grad for tensor in (student.logits, *student.taps.values()) if tensor.grad is not None]
    assert received
    assert all(grad.abs().sum() > 0 for grad in received)
    assert all(tensor.grad is None for tensor in (teacher.logits, *teacher.taps.values()))
    assert all(parameter.grad is not None for parameter in loss.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 3000.0])
def test_loss_and_gradient_are_finite_when_half_precision(name, dtype, scale):
    student = mapped(outputs(0, scale=scale), lambda one: one.detach().to(dtype).requires_grad_())
    teacher = mapped(outputs(1, scale=scale, channels=7), lambda one: one.detach().to(dtype))
    loss = connected(name, student, teacher)
    with torch.autocast("cpu", dtype=dtype):
        value = loss(step(student, teacher))
    value.backward()
    assert value.isfinite()
    grads = [tensor.grad for tensor in (student.logits, *student.taps.values()) if tensor.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_same_when_the_batch_is_permuted(name):
    student, teacher = outputs(0), outputs(1, channels=7)
    order = torch.tensor([3, 0, 4, 2, 1])
    first = step(student, teacher)
    second = Step(
        mapped(student, lambda one: one[order]),
        (mapped(teacher, lambda one: one[order]),),
        first.labels[order],
        order,
        epoch=0,
        progress=0.0,
    )
    loss = connected(name, student, teacher)
    torch.testing.assert_close(loss(first), loss(second))  # float32 sums in another order


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_loss_is_zero_and_flat_when_the_student_equals_the_teacher(name):
    teacher = outputs(1)
    student = mapped(teacher, lambda one: one.detach().clone().requires_grad_())
    loss = connected(name, student, teacher)
    value = loss(step(student, teacher))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    grads = [tensor.grad for tensor in (student.logits, *student.taps.values()) if tensor.grad is not None]
    assert max(grad.abs().max().item() for grad in grads) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_every_option_changes_the_loss(name):
    student, teacher = outputs(0), outputs(1, channels=7)
    base = connected(name, student, teacher)
    reference = base(step(student, teacher)).item()
    for option in member(name).Options.model_fields:
        new = changed(option, getattr(base.options, option))
        other = connected(name, student, teacher, **{option: new})
        assert other(step(student, teacher)).item() != pytest.approx(reference, rel=1e-6), option


@pytest.mark.parametrize("name", NAMES)
def test_taps_named_in_options_are_the_taps_read(name):
    loss = connected(name, outputs(0), outputs(1))
    fields = member(name).Options.model_fields
    assert bool(loss.student_taps()) == any(option.startswith("student_tap") for option in fields)
    assert bool(loss.teacher_taps()) == any(option.startswith("teacher_tap") for option in fields)
    assert set(loss.student_taps()) | set(loss.teacher_taps()) <= set(TAPS)
