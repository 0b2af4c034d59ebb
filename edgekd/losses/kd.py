"""Match the teacher's softened class probabilities (Hinton et al. 2015)."""

from __future__ import annotations

from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._logits import SoftmaxOptions, needs_softmax, needs_to_standardize, softened_logits, standardized

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
    """Learn the teacher's class probabilities, softened by one temperature or by several.

    Weight 0.9 beside a cross-entropy of 0.1 suits most; with standardised logits the published weight is 9 at tau 2.
    Several temperatures show the student the likely classes and the unlikely ones at once; their terms are averaged,
    so that the weight does not depend on how many there are.
    """

    class Options(SoftmaxOptions):
        """Options of `kd`."""

        more_taus: list[Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] = Field(
            [], description="further temperatures, whose terms are averaged with tau's"
        )

    family = "response"

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check the number of classes.

        Raises:
            MismatchError: one logit, two that are to be standardised, or sides that disagree.
        """
        classes = needs_softmax("kd", student, teacher, instead="binary_kd")
        if self._options.standardize:
            needs_to_standardize("kd", classes)

    def forward(self, step: Step) -> Tensor:
        """The distillation term of one step."""
        options = self._options
        student = standardized(step.student.logits) if options.standardize else step.student.logits
        terms = [
            kd(student, softened_logits(step, tau=tau, standardize=options.standardize), tau=tau)
            for tau in (options.tau, *options.more_taus)
        ]
        return torch.stack(terms).mean()

    @property
    def _options(self) -> Options:
        return cast(KD.Options, self.options)
