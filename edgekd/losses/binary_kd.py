"""Match the teacher's probability of each class on its own (binary and multi-label tasks)."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor

from edgekd.losses._base import Loss, Outputs, Step, float32, mixed
from edgekd.losses._logits import TauOptions, classes_of

__all__ = ["BinaryKD", "binary_kd"]


def binary_kd(student: Tensor, teacher: Tensor, *, tau: float) -> Tensor:
    """tau^2 sum over classes of KL(Bern(p_teacher) || Bern(p_student)), p = sigmoid(z / tau), mean over the batch.

    Each logit is its own yes or no, so the classes do not compete as they do under a softmax. For a single logit z
    this is `kd` on the two logits (z, 0).

    The classes are summed, as in `kd` and in `binary_cross_entropy`: divide the weight by K for the mean over them.

    Args:
        student: logits, shape (B, K), K >= 1.
        teacher: logits, same shape; no gradient flows into it.
        tau: temperature, > 0.

    Returns:
        Scalar in nats, float32, scaled by tau^2 so that its gradient does not shrink as tau grows.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531,
    section 2, for a softmax over each class and its absence; one such term for each label: Yang, Xie, Zong, Feng, Niu,
    Sugiyama, Huang, "Multi-Label Knowledge Distillation", 2023, arXiv:2308.06453.

    >>> import torch
    >>> t, s = torch.tensor([[2.1972246]]), torch.zeros(1, 1)  # p_t = 0.9, p_s = 0.5
    >>> round(binary_kd(s, t, tau=1.0).item(), 4)  # 0.9 ln 1.8 + 0.1 ln 0.2
    0.3681
    """
    ours, theirs = float32(student) / tau, float32(teacher.detach()) / tau
    yes = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    no = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return tau**2 * (yes + no).sum(dim=1).mean()


class BinaryKD(Loss):
    """Learn the teacher's yes or no for every class, softened by a temperature.

    Start from the weights of `kd`, 0.9 beside a `binary_cross_entropy` of 0.1. Sigmoids need less softening than a
    softmax over many classes: tau 1 to 2 keeps rare labels apart.
    """

    class Options(TauOptions):
        """Options of `binary_kd`."""

    family = "response"

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check that both sides give as many logits.

        Raises:
            MismatchError: they do not.
        """
        classes_of("binary_kd", student, teacher)

    def forward(self, step: Step) -> Tensor:
        """The distillation term of one step."""
        tau = cast(BinaryKD.Options, self.options).tau
        return binary_kd(step.student.logits, _softened_logits(step, tau), tau=tau)


def _softened_logits(step: Step, tau: float) -> Tensor:
    """Logits whose sigmoid at this tau is the teachers' mean probability; the only teacher's own."""
    if step.shares is None:
        return step.teacher.logits
    each = [float32(one.logits) / tau for one in step.teachers]
    yes, no = (mixed([F.logsigmoid(sign * one) for one in each], step.shares) for sign in (1, -1))
    return tau * (yes - no)
