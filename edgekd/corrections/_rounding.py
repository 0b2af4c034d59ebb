"""Which weights of one layer to round up, which down: the optimisation of AdaRound, in plain tensors.

The gradient is written out, so this needs neither autograd nor an optimizer object; it fits one layer's rounding to
one layer's outputs, and trains no network.

Reference: Nagel, Amjad, van Baalen, Louizos, Blankevoort, "Up or Down? Adaptive Rounding for Post-Training
Quantization", 2020, arXiv:2004.10568, equations 21 to 25.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Bounds", "Problem", "Schedule", "rectified_sigmoid", "regularizer", "rounded_up"]

_ZETA, _GAMMA = 1.1, -0.1


@dataclass(frozen=True)
class Bounds:
    """What the layer's activation function cuts off: -inf and inf for none."""

    low: float
    high: float


@dataclass(frozen=True)
class Problem:
    """One layer's outputs as a function of its rounding; P positions, G groups, F inputs and O outputs of each group.

    Args:
        inputs: what the quantized network gives the layer, shape (G, P, F).
        wanted: the float network's outputs there, behind the activation function, shape (G, P, O).
        bias: shape (G, 1, O).
        steps: the weights over their scales, shape (G, O, F).
        scale: of the weights, shape (G, O, 1).
        low: lowest code.
        high: highest code.
        bounds: of the activation function behind the layer.
    """

    inputs: Tensor
    wanted: Tensor
    bias: Tensor
    steps: Tensor
    scale: Tensor
    low: int
    high: int
    bounds: Bounds

    def error(self, codes: Tensor) -> float:
        """Mean over positions of the squared error of all outputs, for codes of shape (G, O, F)."""
        found = self._outputs(self.inputs, codes).clamp_(self.bounds.low, self.bounds.high)
        return float((found - self.wanted).square_().sum(2).mean(1).sum())

    def shuffled(self, seed: int) -> Problem:
        """The same positions in random order."""
        order = torch.randperm(self.inputs.shape[1], generator=torch.Generator().manual_seed(seed))
        return replace(self, inputs=self.inputs[:, order], wanted=self.wanted[:, order])

    def slope(self, rows: slice, codes: Tensor) -> Tensor:
        """Gradient of the mean squared error over some positions with respect to the codes, shape (G, O, F)."""
        inputs, wanted = self.inputs[:, rows], self.wanted[:, rows]
        found = self._outputs(inputs, codes)
        difference = found.clamp(self.bounds.low, self.bounds.high).sub_(wanted)
        if math.isfinite(self.bounds.low):
            difference = torch.ops.aten.hardtanh_backward(difference, found, self.bounds.low, self.bounds.high)
        slope = (difference.transpose(1, 2) @ inputs).mul_(self.scale * (2.0 / inputs.shape[1]))
        return torch.where((codes < self.low) | (codes > self.high), 0.0, slope)

    def _outputs(self, inputs: Tensor, codes: Tensor) -> Tensor:
        return inputs @ (codes.clamp(self.low, self.high) * self.scale).transpose(1, 2) + self.bias


@dataclass(frozen=True)
class Schedule:
    """How long and how hard.

    Args:
        iterations: steps.
        batch: positions of a step; the steps go round all positions.
        rate: step size of Adam.
        weight: lambda, of the regularizer.
        warmup: fraction of the steps without it.
        beta: exponent of the regularizer behind the warm-up and at the end.
    """

    iterations: int
    batch: int
    rate: float
    weight: float
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)

    def beta_at(self, step: int) -> float | None:
        """The exponent of one step; None during the warm-up."""
        first = self.warmup * self.iterations
        if step < first:
            return None
        start, end = self.beta
        return end + (start - end) * (1.0 - (step - first) / (self.iterations - first))


def rectified_sigmoid(values: Tensor) -> Tensor:
    """h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), equation 23 with zeta = 1.1 and gamma = -0.1.

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (torch.sigmoid(values) * (_ZETA - _GAMMA) + _GAMMA).clamp(0.0, 1.0)


def regularizer(share: Tensor, beta: float) -> Tensor:
    """Sum of 1 - |2 h - 1|^beta, equation 24: 0 where every h is 0 or 1; scalar.

    >>> regularizer(torch.tensor([0.0, 0.5, 0.75, 1.0]), 2.0)  # 0 + 1 + (1 - 0.25) + 0
    tensor(1.7500)
    """
    return (1.0 - (2.0 * share - 1.0).abs().pow(beta)).sum()


def rounded_up(problem: Problem, schedule: Schedule, *, seed: int) -> Tensor:
    """Which weights to round up, 0.0 or 1.0, shape (G, O, F).

    Minimises equation 25, the mean squared error behind the activation function plus lambda times the regularizer, over
    V of h(V), starting from h(V) = the weight's own fraction. Gives rounding to nearest where that is no worse.
    """
    floor = problem.steps.floor()
    share = problem.steps - floor
    values = _inverse(share)
    problem = problem.shuffled(seed)
    moments = torch.zeros_like(values), torch.zeros_like(values)
    batches = max(problem.inputs.shape[1] // schedule.batch, 1)
    for step in range(schedule.iterations):
        # slices of what was shuffled once: gathering other rows in every step would cost more than the products
        first = step % batches * schedule.batch
        share, steepness = _sigmoid_and_slope(values)
        slope = problem.slope(slice(first, first + schedule.batch), floor + share)
        beta = schedule.beta_at(step)
        if beta is not None:
            slope.add_(_regularizer_slope(share, beta), alpha=schedule.weight)
        _adam(values, slope.mul_(steepness), moments, step + 1, schedule.rate)
    up = (rectified_sigmoid(values) >= 0.5).to(values.dtype)
    nearest = problem.steps.round() - floor
    return up if problem.error(floor + up) < problem.error(floor + nearest) else nearest


def _inverse(share: Tensor) -> Tensor:
    """V with h(V) = share, for shares in [0, 1)."""
    return torch.logit((share - _GAMMA) / (_ZETA - _GAMMA))


def _sigmoid_and_slope(values: Tensor) -> tuple[Tensor, Tensor]:
    """h(V) and h'(V), which is 0 where h is cut off."""
    sigmoid = torch.sigmoid(values)
    stretched = sigmoid * (_ZETA - _GAMMA) + _GAMMA
    slope = (sigmoid - sigmoid.square()).mul_(_ZETA - _GAMMA)
    return stretched.clamp(0.0, 1.0), torch.ops.aten.hardtanh_backward(slope, stretched, 0.0, 1.0)


def _regularizer_slope(share: Tensor, beta: float) -> Tensor:
    """Derivative of the regularizer with respect to each h."""
    centred = 2.0 * share - 1.0
    return centred.abs().pow_(beta - 1.0).copysign_(centred).mul_(-2.0 * beta)


def _adam(values: Tensor, slope: Tensor, moments: tuple[Tensor, Tensor], step: int, rate: float) -> None:
    """One step of Adam with its usual constants, in place (Kingma, Ba, 2014, arXiv:1412.6980, algorithm 1)."""
    first, second = moments
    first.lerp_(slope, 1.0 - 0.9)
    second.mul_(0.999).addcmul_(slope, slope, value=1.0 - 0.999)
    spread = (second / (1.0 - 0.999**step)).sqrt_().add_(1e-8)
    values.addcdiv_(first, spread, value=-rate / (1.0 - 0.9**step))
