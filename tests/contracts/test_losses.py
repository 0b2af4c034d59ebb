"""Every loss of the catalog: scalar, finite in half precision, no gradient to the teacher, every option counts.

A loss that needs more than two feature maps says so beside its own tests, in `tests/losses/case_<name>.py`, by any of
    TAPS       shapes of the taps without the batch, by name; default `wide` (6, 6) and `small` (3, 3) with channels
    CHANNELS   of the student's taps and of the teacher's, where TAPS is not given; default (4, 7)
    OPTIONS    options without which the loss cannot be made
    CHANGES    by option: another value, for the test that every option counts
    PREPARE    called with the connected loss before it is used: fills a memory, moves weights away from a symmetry
    SETTLE     called with the connected loss before the value at the teacher is looked at: perfect connectors
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import case
from torch import Tensor

from edgekd.catalog import CATALOGS
from edgekd.losses._base import Loss, Outputs, Split, Step

NAMES = CATALOGS["losses"].names()
WITH_TEACHER = [name for name in NAMES if CATALOGS["losses"].load(name).member.needs_teacher]
ZERO_AT_TEACHER = [name for name in WITH_TEACHER if CATALOGS["losses"].load(name).member.zero_at_teacher]
BATCHWISE = [name for name in NAMES if CATALOGS["losses"].load(name).member.batchwise]
SIZES = {"wide": (6, 6), "small": (3, 3)}  # height and width of each tap


def member(name: str) -> type[Loss]:
    return CATALOGS["losses"].load(name).member


def values_for(name: str) -> dict[str, object]:
    """Options for any loss: taps are told by their names."""
    fields = member(name).Options.model_fields
    values: dict[str, object] = {option: ["wide", "small"] for option in fields if option.endswith("_taps")}
    values |= {option: "wide" for option in fields if option.endswith("_tap")}
    return values | case("losses", name).get("OPTIONS", {})


def changed(name: str, option: str, value: object) -> object:
    changes = case("losses", name).get("CHANGES", {})
    if option in changes:
        return changes[option]
    if option.endswith("_taps"):
        return ["small", "wide"]
    if option.endswith("_tap"):
        return "small"
    if isinstance(value, bool):
        return not value
    assert isinstance(value, (int, float)), f"say here how to change option '{option}'"
    return value * 2 + 1


def outputs(name: str, seed: int, *, side: int = 0, batch: int = 5, scale: float = 1.0) -> Outputs:
    """Random outputs of the student (side 0) or the teacher (side 1)."""
    channels = case("losses", name).get("CHANNELS", (4, 7))[side]
    taps = case("losses", name).get("TAPS") or {tap: (channels, *size) for tap, size in SIZES.items()}
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_()

    return Outputs(draw(batch, 3), {tap: draw(batch, *shape) for tap, shape in taps.items()})


def step(student: Outputs, teacher: Outputs) -> Step:
    size = len(student.logits)
    labels = torch.eye(3)[torch.arange(size) % 3]
    return Step(student, (teacher,), labels, torch.arange(size), epoch=0, progress=0.0)


def connected(name: str, student: Outputs, teacher: Outputs, **changes: object) -> Loss:
    torch.manual_seed(0)
    loss = member(name)(member(name).Options(**(values_for(name) | changes)))
    loss.split = Split(torch.arange(30) % 3, 3)
    loss.connect(student, teacher if loss.needs_teacher else None)
    ready: Callable[[Loss], None] | None = case("losses", name).get("PREPARE")
    if ready is not None:
        ready(loss)
    return loss


def mapped(one: Outputs, change) -> Outputs:
    return Outputs(change(one.logits), {name: change(tap) for name, tap in one.taps.items()})


def test_catalog_holds_the_first_losses():
    assert set(NAMES) >= {"cross_entropy", "kd", "hint", "attention"}
    assert len(WITH_TEACHER) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_one_float32_number_and_states_its_family(name):
    student, teacher = outputs(name, 0), outputs(name, 1, side=1)
    value = connected(name, student, teacher)(step(student, teacher))
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert value.item() != 0
    assert member(name).family in {"response", "feature", "relation", "attention", "graph"}


@pytest.mark.parametrize("name", NAMES)
def test_gradient_goes_to_student_and_connector_and_never_to_the_teacher(name):
    student, teacher = outputs(name, 0), outputs(name, 1, side=1)
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
    student = mapped(outputs(name, 0, scale=scale), lambda one: one.detach().to(dtype).requires_grad_())
    teacher = mapped(outputs(name, 1, side=1, scale=scale), lambda one: one.detach().to(dtype))
    loss = connected(name, student, teacher)
    with torch.autocast("cpu", dtype=dtype):
        value = loss(step(student, teacher))
    value.backward()
    assert value.isfinite()
    grads = [tensor.grad for tensor in (student.logits, *student.taps.values()) if tensor.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_same_when_the_batch_is_permuted(name):
    student, teacher = outputs(name, 0), outputs(name, 1, side=1)
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
    loss, again = connected(name, student, teacher), connected(name, student, teacher)
    torch.testing.assert_close(loss(first), again(second))  # float32 sums in another order


@pytest.mark.parametrize("name", NAMES)
def test_loss_says_whether_it_looks_at_the_batch(name):
    student, teacher = outputs(name, 0, batch=6), outputs(name, 1, side=1, batch=6)
    both = step(student, teacher)

    def half(part: slice) -> Step:
        return Step(
            mapped(student, lambda one: one[part]),
            (mapped(teacher, lambda one: one[part]),),
            both.labels[part],
            both.ids[part],
            epoch=0,
            progress=0.0,
        )

    loss = [connected(name, student, teacher) for _ in range(3)]
    apart = (loss[0](half(slice(3))) + loss[1](half(slice(3, 6)))) / 2
    assert torch.allclose(loss[2](both), apart, rtol=1e-5) != member(name).batchwise


@pytest.mark.parametrize("name", ZERO_AT_TEACHER)
def test_loss_is_zero_and_flat_when_the_student_equals_the_teacher(name):
    teacher = outputs(name, 1)
    student = mapped(teacher, lambda one: one.detach().clone().requires_grad_())
    loss = connected(name, student, teacher)
    settle: Callable[[Loss], None] | None = case("losses", name).get("SETTLE")
    if settle is not None:
        settle(loss)
    value = loss(step(student, teacher))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    grads = [tensor.grad for tensor in (student.logits, *student.taps.values()) if tensor.grad is not None]
    assert max(grad.abs().max().item() for grad in grads) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_every_option_changes_the_loss(name):
    student, teacher = outputs(name, 0), outputs(name, 1, side=1)
    base = connected(name, student, teacher)
    reference = base(step(student, teacher)).item()
    for option in member(name).Options.model_fields:
        new = changed(name, option, getattr(base.options, option))
        other = connected(name, student, teacher, **{option: new})
        assert other(step(student, teacher)).item() != pytest.approx(reference, rel=1e-6), option


@pytest.mark.parametrize("name", NAMES)
def test_taps_named_in_options_are_the_taps_read(name):
    loss = connected(name, outputs(name, 0), outputs(name, 1, side=1))
    fields = member(name).Options.model_fields
    known = case("losses", name).get("TAPS", SIZES)
    assert bool(loss.student_taps()) == any(option.startswith("student_tap") for option in fields)
    assert bool(loss.teacher_taps()) == any(option.startswith("teacher_tap") for option in fields)
    assert set(loss.student_taps()) | set(loss.teacher_taps()) <= set(known)
