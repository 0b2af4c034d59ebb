"""Match how probabilities correlate within a sample and within a class (DIST, Huang et al. 2022)."""

from __future__ import annotations

from typing import Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgekd.losses._base import Loss, Outputs, Step
from edgekd.losses._gather import gathered
from edgekd.losses._logits import TauOptions, needs_softmax, needs_three_classes, softened_logits
from edgekd.losses._widened import widened

__all__ = ["DIST", "dist"]

SHORTEST = 1e-12  # squared length below which a vector counts as having no variance


def dist(student: Tensor, teacher: Tensor, *, beta: float, gamma: float, tau: float) -> Tensor:
    """tau^2 (beta mean_i (1 - r(row i)) + gamma mean_k (1 - r(column k))), r Pearson's correlation of the two sides.

    Rows are samples, columns are classes, of probabilities softened by tau. Correlation asks for the teacher's
    preferences, not its values, which a much stronger teacher's student cannot reach.

    1 - r is written as half the squared difference of the two centred vectors of length one, which is exactly 0 and
    flat where they agree. A vector without variance, such as a class that no sample of the batch may be, has no
    direction: 1e-12 is added to the squared lengths, so that it counts as the zero vector; with 1000 classes the
    squared length of a class can be as small as 1e-6. The published code adds 1e-8 to the product of the lengths. The
    factor tau^2 is that code's as well, to which its weights belong.

    Args:
        student: logits, shape (B, K), K >= 3.
        teacher: logits, same shape; no gradient flows into it.
        beta: weight of the relation between classes, >= 0.
        gamma: weight of the relation within a class, >= 0; needs more than one sample.
        tau: temperature, > 0.

    Returns:
        Scalar, float32, in [0, 2 tau^2 (beta + gamma)].

    Reference: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", 2022, arXiv:2205.10536,
    section 4.

    >>> import torch
    >>> t = torch.tensor([[0.7, 0.2, 0.1]]).log()
    >>> s = torch.tensor([[0.2, 0.7, 0.1]]).log()
    >>> value = dist(s, t, beta=1.0, gamma=0.0, tau=1.0)  # centred (11, -4, -7) / 30 and (-4, 11, -7) / 30
    >>> round(value.item(), 4)  # 1 - (-44 - 44 + 49) / (121 + 16 + 49) = 225 / 186
    1.2097
    """
    ours, theirs = ((widened(one) / tau).softmax(dim=1) for one in (student, teacher.detach()))
    between, within = _distance(ours, theirs).mean(), _distance(ours.T, theirs.T).mean()
    return tau**2 * (beta * between + gamma * within)


class DIST(Loss):
    """Learn the teacher's order of the classes for a sample, and its order of the samples for a class.

    Weight 1 beside a cross-entropy of 1: the published 2 and 2 are in the options. Published for CIFAR-100 with tau 4,
    for ImageNet with tau 1. The second relation is that of the samples that share a batch: large batches serve it.
    """

    class Options(TauOptions):
        """Options of `dist`."""

        beta: float = Field(2.0, ge=0.0, allow_inf_nan=False, description="weight of the classes' relation in a sample")
        gamma: float = Field(2.0, ge=0.0, allow_inf_nan=False, description="weight of the samples' relation in a class")

        @model_validator(mode="after")
        def _something_is_left(self) -> Self:
            if self.beta == self.gamma == 0:
                raise ValueError("beta and gamma are both 0: nothing would be learned")
            return self

    family = "response"
    batchwise = True

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check the number of classes.

        Raises:
            MismatchError: fewer than three classes, or sides that disagree.
        """
        needs_three_classes(
            "dist",
            needs_softmax("dist", student, teacher, instead="binary_kd"),
            because="two probabilities correlate by +1 or -1 whatever they are",
            instead="kd",
        )

    def forward(self, step: Step) -> Tensor:
        """The distillation term of one step, over the batch of all processes."""
        options = cast(DIST.Options, self.options)
        student, teacher = gathered(step.student.logits), gathered(softened_logits(step, tau=options.tau))
        return dist(student, teacher, beta=options.beta, gamma=options.gamma, tau=options.tau)


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """1 - Pearson's correlation of each row with the other side's, shape (rows,)."""
    return 0.5 * (_direction(ours) - _direction(theirs)).pow(2).sum(dim=1)


def _direction(values: Tensor) -> Tensor:
    centred = values - values.mean(dim=1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).sum(dim=1, keepdim=True) + SHORTEST)
