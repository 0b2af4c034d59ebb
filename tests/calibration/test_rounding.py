"""Rounding with gradients: torch's own operators, finite differences and the papers' formulas as yardsticks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgekd.calibration import _rounding
from edgekd.calibration._rounding import Range, learned_channels, learned_tensor, rounded_channels, rounded_tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYOUTS = {
    "rows": lambda: normal(5, 7),
    "maps": lambda: normal(3, 4, 5, 6),
    "channels last": lambda: normal(3, 4, 5, 6).to(memory_format=torch.channels_last),
    "volumes": lambda: normal(2, 3, 4, 5, 6),
    "a part of a tensor": lambda: normal(6, 8, 5, 5)[::2, 1:4],
    "scalar": lambda: normal(1)[0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("zero_point", "low", "high"), [(0, 0, 255), (77, 0, 255), (-128, -128, 127), (0, -128, 127)])
def test_tensor_is_rounded_as_torch_does_forwards_and_backwards(
    layout: str, zero_point: int, low: int, high: int
) -> None:
    values = LAYOUTS[layout]() * 3
    scale, zero = torch.tensor(0.0213), torch.tensor(zero_point, dtype=torch.int32)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    found = rounded_tensor(ours, scale, zero, low, high)
    wanted = torch.fake_quantize_per_tensor_affine(theirs, scale, zero, low, high)
    assert torch.equal(found, wanted)
    weights = normal(*values.shape, seed=1)
    found.backward(weights)
    wanted.backward(weights)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    if layout in ("rows", "maps"):
        assert 0 < int((ours.grad == 0).sum()) < ours.grad.numel()  # some were clipped, or this compares nothing


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_are_rounded_as_torch_does_forwards_and_backwards(axis: int) -> None:
    values = normal(4, 4, 3, 3)
    scale = values.abs().amax([one for one in range(4) if one != axis]) / 127
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    found = rounded_channels(ours, scale, axis, -127, 127)
    zero = torch.zeros(4, dtype=torch.int32)
    wanted = torch.fake_quantize_per_channel_affine(theirs, scale, zero, axis, -127, 127)
    assert torch.equal(found, wanted)
    weights = normal(4, 4, 3, 3, seed=1)
    found.backward(weights)
    wanted.backward(weights)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


# LSQ: "Learned Step Size Quantization", equations 1 to 5


def test_gradients_of_a_learned_scale_are_those_worked_by_hand() -> None:
    values = torch.tensor([[0.4, 2.6, 9.0, -1.0]], requires_grad=True)
    gain = torch.ones(1, requires_grad=True)
    used = Range(scale=1.0, zero_point=0, low=0, high=7, start=1.0, top=7)
    rounded = learned_tensor(values, gain, None, used)
    assert rounded.tolist() == [[0.0, 3.0, 7.0, 0.0]]
    rounded.sum().backward()
    # equation 5: 1 between the ends; equation 3: 0 - 0.4, 3 - 2.6, Q_P = 7, -Q_N = 0
    assert values.grad is not None
    assert gain.grad is not None
    assert values.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    # the sum is 7; the gradient scale 1 / sqrt(N Q_P) with four values and seven steps
    assert float(gain.grad) == pytest.approx(7.0 / math.sqrt(4 * 7))


def test_gradients_of_a_learned_offset_are_those_worked_by_hand() -> None:
    # codes 0 to 7 over [-2, 5], so the zero-point is 2; s = 1
    values = torch.tensor([[-3.0, -1.6, 0.3, 6.0, 7.0]], requires_grad=True)
    gain, shift = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    used = Range(scale=1.0, zero_point=2, low=0, high=7, start=1.0, top=7)
    rounded = learned_tensor(values, gain, shift, used)
    assert rounded.tolist() == [[-2.0, -2.0, 0.0, 5.0, 5.0]]
    rounded.sum().backward()
    assert values.grad is not None
    assert gain.grad is not None
    assert shift.grad is not None
    assert values.grad.tolist() == [[0.0, 1.0, 1.0, 0.0, 0.0]]
    weight = 1.0 / math.sqrt(5 * 7)
    # of the scale, the lower end held: -2 + 1.6 and 0 - 0.3 inside, 7 for each of the two above, 0 below
    assert float(gain.grad) == pytest.approx((-0.4 - 0.3 + 14.0) * weight)
    # of the offset: 1 for each of the three outside; it is counted in widths of 7 steps
    assert float(shift.grad) == pytest.approx(3.0 * 7 * weight)


def reference(values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """LSQ written with torch's own gradients: round passes them on, as the paper says."""
    steps = (values / scale).clamp(low, high)
    return (steps + (steps.round() - steps).detach()) * scale


@pytest.mark.parametrize("layout", ["rows", "maps", "channels last", "volumes", "a part of a tensor"])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127)])
def test_gradient_of_a_scale_equals_the_one_that_autograd_finds(layout: str, low: int, high: int) -> None:
    values = LAYOUTS[layout]() * 2
    weights = normal(*values.shape, seed=1)
    scale = torch.tensor(0.011, requires_grad=True)
    theirs = values.clone().requires_grad_()
    (reference(theirs, scale, low, high) * weights).sum().backward()
    ours, gain = values.clone().requires_grad_(), torch.ones(1, requires_grad=True)
    used = Range(0.011, 0, low, high, start=0.011, top=high)
    (learned_tensor(ours, gain, None, used) * weights).sum().backward()
    assert scale.grad is not None
    assert gain.grad is not None
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    by_paper = float(scale.grad) / math.sqrt(values[0].numel() * high)
    # plain gradient descent on the gain moves the scale, start times gain, by what the paper says
    assert float(gain.grad) * 0.011 == pytest.approx(by_paper, rel=1e-4)


def test_gradient_of_a_scale_does_not_depend_on_layouts_or_on_where_a_tensor_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, weights = normal(3, 4, 5, 6) * 2, normal(3, 4, 5, 6, seed=1)
    found = []
    for piece in (2**18, 7):
        monkeypatch.setattr(_rounding, "_PIECE", piece)
        for layout in (torch.contiguous_format, torch.channels_last):
            for upstream in (torch.contiguous_format, torch.channels_last):
                gain = torch.ones(1, requires_grad=True)
                rounded = learned_tensor(values.to(memory_format=layout), gain, None, Range(0.01, 0, 0, 255, 0.01, 255))
                rounded.backward(weights.to(memory_format=upstream))
                found.append(float(gain.grad))  # type: ignore[arg-type]
    assert found == pytest.approx([found[0]] * 8, rel=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_gradient_of_channel_scales_equals_the_one_that_autograd_finds(axis: int) -> None:
    values = normal(6, 6, 3, 3)
    weights = normal(6, 6, 3, 3, seed=1)
    shape = [1, 1, 1, 1]
    shape[axis] = 6
    start = torch.linspace(0.005, 0.03, 6)
    scale, theirs = (start * 1.25).requires_grad_(), values.clone().requires_grad_()
    (reference(theirs, scale.view(shape), -64, 64) * weights).sum().backward()
    ours, gain = values.clone().requires_grad_(), torch.full((6,), 1.25, requires_grad=True)
    (learned_channels(ours, gain, start * gain.detach(), start, axis, -64, 64) * weights).sum().backward()
    assert scale.grad is not None
    assert gain.grad is not None
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(gain.grad * start, scale.grad / math.sqrt(54 * 64), rtol=1e-4, atol=1e-6)


def test_gradient_of_a_scale_agrees_with_finite_differences_where_values_are_clipped() -> None:
    # what is clipped follows the end of the range, so there the estimate is the true derivative
    values = torch.full((1, 3), 100.0)
    gain = torch.ones(1, requires_grad=True)

    def outputs(factor: float) -> Tensor:
        return learned_tensor(values, gain, None, Range(0.02 * factor, 0, 0, 255, 0.02, 255))

    outputs(1.0).sum().backward()
    assert gain.grad is not None
    difference = float((outputs(1.01) - outputs(0.99)).detach().sum()) / 0.02
    # the derivative by the gain, times 1 / sqrt(N Q_P) and over the start squared
    assert float(gain.grad) * 0.02**2 * math.sqrt(3 * 255) == pytest.approx(difference, rel=1e-4)


def test_nothing_is_learned_by_a_scale_that_has_no_gain() -> None:
    values = normal(3, 4).requires_grad_()
    scale = torch.full((3,), 0.005)
    learned_channels(values, None, scale, scale, 0, -127, 127).sum().backward()
    assert values.grad is not None
    # what lies beyond the last code is clipped, and has no gradient
    assert torch.equal(values.grad, (values.detach().abs() < 127 * 0.005).float())
