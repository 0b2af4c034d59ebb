"""Match the teacher's softened class probabilities (Hinton et al. 2015)."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd import spec
from edgekd.losses._base import Loss, Step, float32

__all__ = ["KD", "kd"]


def kd(student: Tensor, teacher: Tensor, *, tau: float) -> Tensor:
    """tau^2 KL(p_teacher || p_student), both softened by tau, mean over the batch.

    The mean is over samples, not over samples and classes: dividing by K as well would shrink the term by
    the number of classes.

    Args:
        student: logits, shape (B, K).
        teacher: logits, same shape; no gradient flows into it.
        tau: temperature, > 0; larger values weigh small probabilities more.

    Returns:
        Scalar in nats, float32, scaled by tau^2 so that its gradient does not shrink as tau grows.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531,
    section 2.

    >>> import torch
    >>> t, s = torch.tensor([[2.1972246, 0.0]]), torch.zeros(1, 2)  # p_t = (0.9, 0.1), p_s = (0.5, 0.5)
    >>> round(kd(s, t, tau=1.0).item(), 4)  # 0.9 ln 1.8 + 0.1 ln 0.2
    0.3681
    """
    log_student = F.log_softmax(float32(student) / tau, dim=1)
    log_teacher = F.log_softmax(float32(teacher.detach()) / tau, dim=1)
    return tau**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


class KD(Loss):
    """Learn the teacher's class probabilities, softened by a temperature."""

    class Options(spec.Options):
        """Options of `kd`."""

        tau: float = Field(4.0, gt=0.0, allow_inf_nan=False, description="temperature; 4 suits CIFAR, 1 ImageNet")

    family = "response"

    def forward(self, step: Step) -> Tensor:
        """The distillation term of one step."""
        return kd(step.student.logits, step.teacher.logits, tau=cast(KD.Options, self.options).tau)
