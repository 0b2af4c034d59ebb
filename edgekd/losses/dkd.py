"""Match the target's probability and the other classes' shares apart (DKD, Zhao et al. 2022)."""

from __future__ import annotations

from typing import Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._logits import (
    SoftmaxOptions,
    needs_softmax,
    needs_three_classes,
    needs_to_standardize,
    softened_logits,
    standardized,
)

__all__ = ["DKD", "dkd"]


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float, beta: float, tau: float) -> Tensor:
    """tau^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s)), mean over the batch.

    b is the pair (probability of the target class, probability of all others), q the distribution over the
    other classes alone. Plain distillation weighs the second term by the teacher's 1 - p(target), so a sure
    teacher says least about the other classes; here its weight is beta.

    The target is the label's most probable class, the first one where several share the largest part: a mixed sample
    counts as its larger half, and smoothing changes nothing.

    Args:
        student: logits, shape (B, K), K >= 3.
        teacher: logits, same shape; no gradient flows into it.
        labels: class probabilities, same shape; every sample needs a label.
        alpha: weight of the target's term, >= 0.
        beta: weight of the other classes' term, >= 0.
        tau: temperature, > 0.

    Returns:
        Scalar in nats, float32.

    Reference: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", 2022, arXiv:2203.08679, equation 7.

    >>> import torch
    >>> t, s = torch.tensor([[0.0, 1.0986123, 0.0]]), torch.zeros(1, 3)  # p_t = (0.2, 0.6, 0.2), p_s = (1, 1, 1) / 3
    >>> y = torch.tensor([[1.0, 0.0, 0.0]])  # b_t = (0.2, 0.8), b_s = (1/3, 2/3); q_t = (0.75, 0.25), q_s = (0.5, 0.5)
    >>> round(dkd(s, t, y, alpha=1.0, beta=0.0, tau=1.0).item(), 4)  # 0.2 ln 0.6 + 0.8 ln 1.2
    0.0437
    >>> round(dkd(s, t, y, alpha=0.0, beta=1.0, tau=1.0).item(), 4)  # 0.75 ln 1.5 + 0.25 ln 0.5
    0.1308
    """
    target = labels.argmax(dim=1, keepdim=True)
    ours, theirs = (_parted(float32(one) / tau, target) for one in (student, teacher.detach()))
    terms = [
        F.kl_div(one, other, reduction="batchmean", log_target=True) for one, other in zip(ours, theirs, strict=True)
    ]
    return tau**2 * (alpha * terms[0] + beta * terms[1])


class DKD(Loss):
    """Learn the teacher's confidence in the label, and separately how it ranks the other classes.

    Weight 1 beside a cross-entropy of 1. Published for CIFAR-100: the defaults, where the best beta differs from pair
    to pair of networks; for ImageNet: tau 1, beta 0.5, one epoch of warm-up.
    """

    class Options(SoftmaxOptions):
        """Options of `dkd`."""

        alpha: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="weight of the target class's term")
        beta: float = Field(8.0, ge=0.0, allow_inf_nan=False, description="weight of the other classes' term")
        warmup_epochs: int = Field(
            20, ge=0, description="epochs over which the term grows linearly to its weight; well below all epochs"
        )

        @model_validator(mode="after")
        def _something_is_left(self) -> Self:
            if self.alpha == self.beta == 0:
                raise ValueError("alpha and beta are both 0: nothing would be learned")
            return self

    family = "response"
    needs_labels = True

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check the number of classes.

        Raises:
            MismatchError: fewer than three classes, or sides that disagree.
        """
        classes = needs_softmax("dkd", student, teacher, instead="binary_kd")
        if self._options.standardize:
            needs_to_standardize("dkd", classes)
        needs_three_classes(
            "dkd",
            classes,
            because="beside the target one class is left, whose share of the rest is always 1",
            instead="kd, which is the same for two classes",
        )

    def forward(self, step: Step) -> Tensor:
        """The distillation term of one step."""
        options = self._options
        student = standardized(step.student.logits) if options.standardize else step.student.logits
        teacher = softened_logits(step, tau=options.tau, standardize=options.standardize)
        value = dkd(student, teacher, step.labels, alpha=options.alpha, beta=options.beta, tau=options.tau)
        # the first epoch has 1 / warmup_epochs of the weight, as in the published code, which counts from 1
        return value * min((step.epoch + 1) / max(options.warmup_epochs, 1), 1.0)

    @property
    def _options(self) -> Options:
        return cast(DKD.Options, self.options)


def _parted(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities of (target, not target), shape (B, 2), and of the other classes alone, shape (B, K - 1)."""
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, target, False)
    rest = logits[others].view(len(logits), -1)
    # sums of exponentials stay in the log domain: the log of a summed softmax is -inf where the target has it all
    pair = torch.cat([logits.gather(1, target), rest.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(pair, dim=1), F.log_softmax(rest, dim=1)
