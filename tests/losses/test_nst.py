from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.nst import NST, nst

KERNELS = ["polynomial", "linear", "gaussian"]


def naive(student: Tensor, teacher: Tensor, kernel: str) -> float:
    """The definition, pattern by pattern, in float64."""
    total = 0.0
    for one, other in zip(student.double().flatten(2), teacher.double().flatten(2), strict=True):
        ours, theirs = [[row / row.norm() for row in side] for side in (one, other)]
        squared = torch.stack([(x - y).square().sum() for x in ours for y in theirs]).mean()
        kernels = {
            "polynomial": lambda x, y: (x @ y) ** 2,
            "linear": lambda x, y: x @ y,
            "gaussian": lambda x, y, spread=squared: torch.exp(-(x - y).square().sum() / (2 * spread)),
        }

        def mean(first: list[Tensor], second: list[Tensor], of=kernels[kernel]) -> float:
            return sum(of(x, y).item() for x in first for y in second) / (len(first) * len(second))

        total += mean(ours, ours) + mean(theirs, theirs) - 2 * mean(ours, theirs)
    return total / len(student)


def test_values_worked_by_hand():
    # patterns: student (0.6, 0.8) and (0, 1), teacher (0, 1). Products: s1.s2 = s1.t = 0.8, s2.t = 1
    student, teacher = torch.tensor([[[[3.0, 4.0]], [[0.0, 2.0]]]]), torch.tensor([[[[0.0, 7.0]]]])
    polynomial = (1 + 1 + 2 * 0.64) / 4 + 1 - 2 * (0.64 + 1) / 2
    linear = (1 + 1 + 2 * 0.8) / 4 + 1 - 2 * (0.8 + 1) / 2
    # squared distances: s1 to s2 and to t 0.4, s2 to t 0; sigma^2 = (0.4 + 0) / 2 = 0.2
    near = math.exp(-0.4 / 0.4)
    gaussian = (1 + 1 + 2 * near) / 4 + 1 - 2 * (near + 1) / 2
    assert nst(student, teacher).item() == pytest.approx(polynomial, abs=1e-6)
    assert nst(student, teacher, kernel="linear").item() == pytest.approx(linear, abs=1e-6)
    assert nst(student, teacher, kernel="gaussian").item() == pytest.approx(gaussian, abs=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 4, 4)])  # fewer positions than channels, and more
def test_value_equals_the_double_sum_over_patterns(kernel, shape):
    channels, height, width = shape
    student, teacher = torch.randn(2, channels, height, width), torch.randn(2, channels + 2, height, width)
    assert nst(student, teacher, kernel=kernel).item() == pytest.approx(naive(student, teacher, kernel), abs=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_value_ignores_the_order_number_and_scale_of_channels(kernel):
    student, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 6, 3, 3)
    value = nst(student, teacher, kernel=kernel)
    for same in (student[:, [2, 0, 3, 1]], torch.cat([student, student], dim=1), student * torch.tensor(9.0)):
        torch.testing.assert_close(nst(same, teacher, kernel=kernel), value, atol=1e-5, rtol=1e-4)
    assert nst(teacher[:, [5, 4, 3, 2, 1, 0]], teacher, kernel=kernel).item() == pytest.approx(0.0, abs=1e-6)
    assert value.item() > 1e-3


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [2, 8])
def test_value_and_gradient_are_finite_when_channels_are_dead_or_all_alike(kernel, size):
    student = torch.randn(2, 4, size, size)
    student[:, 1] = 0.0
    for given in (student, torch.zeros(2, 4, size, size), torch.ones(2, 4, size, size)):
        given = given.clone().requires_grad_()
        value = nst(given, torch.ones(2, 5, size, size), kernel=kernel)
        value.backward()
        assert value.isfinite()
        assert given.grad.isfinite().all()
        assert given.grad.abs().max() < 100


def test_products_stay_in_float32_under_autocast():
    student, teacher = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = nst(student, teacher)
    assert value.item() == nst(student, teacher).item()


def test_pairs_add_up_and_larger_maps_are_averaged_down():
    student = {"a": torch.randn(2, 4, 6, 6), "b": torch.randn(2, 3, 3, 3)}
    teacher = {"c": torch.randn(2, 5, 3, 3), "d": torch.randn(2, 5, 3, 3)}
    loss = NST(NST.Options(student_taps=["a", "b"], teacher_taps=["c", "d"]))
    logits = torch.zeros(2, 2)
    step = Step(Outputs(logits, student), (Outputs(logits, teacher),), logits, torch.arange(2), epoch=0, progress=0.0)
    loss.connect(step.student, step.teacher)
    assert list(loss.parameters()) == []
    pooled = torch.nn.functional.avg_pool2d(student["a"], 2)
    torch.testing.assert_close(loss(step), nst(pooled, teacher["c"]) + nst(student["b"], teacher["d"]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_student_learns(kernel):
    teacher, student = torch.randn(4, 6, 4, 4), torch.randn(4, 3, 4, 4, requires_grad=True)
    optimizer = torch.optim.SGD([student], lr=5.0)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = nst(student, teacher, kernel=kernel)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


def test_errors_name_what_is_wrong():
    with pytest.raises(ValidationError, match="kernel"):
        NST.Options(student_taps=["a"], teacher_taps=["b"], kernel="cubic")
    sides = [Outputs(torch.zeros(2, 2), {"a": torch.randn(2, 3)}) for _ in range(2)]
    with pytest.raises(MismatchError, match=r"nst cannot join student tap 'a' .* with \(B, C, H, W\)\."):
        NST(NST.Options(student_taps=["a"], teacher_taps=["a"])).connect(*sides)
