"""Match the teacher's logits themselves by their squared difference (Ba and Caruana 2014; Kim et al. 2021)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd import spec
from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._logits import classes_of, needs_to_standardize, standardized

__all__ = ["MSELogits", "mse_logits"]


def mse_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the logits, mean over the classes and over the batch.

    Both papers write the sum over the classes (Ba and Caruana half of it). The mean is what the published experiments
    of Kim et al. ran, with weight 1, and it keeps the weight of `kd` whatever K is: for logits of mean zero half of
    this value is what `kd` tends to as tau grows. Unlike `kd` it also asks for the teacher's mean logit.

    Args:
        student: logits, shape (B, K).
        teacher: logits, same shape; no gradient flows into it.

    Returns:
        Scalar in squared logits, float32.

    Reference: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", 2014, arXiv:1312.6184, equation 1; Kim, Oh, Kim,
    Cho, Yun, "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation", 2021,
    arXiv:2105.08919.

    >>> import torch
    >>> mse_logits(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])).item()  # (4 + 0) / 2
    2.0
    """
    return F.mse_loss(float32(student), float32(teacher.detach()))


class MSELogits(Loss):
    """Learn the teacher's logits, scale included.

    Of several teachers it learns the mean of their logits, as Ba and Caruana did. Published with weight 1 and without
    labels. The value grows with the square of the teacher's logits: lower the
    weight or set `clip_grad_norm` if those are large.
    """

    class Options(spec.Options):
        """Options of `mse_logits`."""

        standardize: bool = Field(
            False, description="give every sample's logits mean 0 and deviation 1 first, so that only relations count"
        )

    family = "response"

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check the number of classes.

        Raises:
            MismatchError: fewer than three logits that are to be standardised, or sides that disagree.
        """
        classes = classes_of("mse_logits", student, teacher)
        if self._options.standardize:
            needs_to_standardize("mse_logits", classes)

    def forward(self, step: Step) -> Tensor:
        """The distillation term of one step."""
        ready = standardized if self._options.standardize else float32
        student = ready(step.student.logits)
        if step.shares is None:
            return mse_logits(student, ready(step.teacher.logits))
        each = torch.stack([ready(one.logits) for one in step.teachers], dim=1)
        return mse_logits(student, (step.shares.unsqueeze(2) * each).sum(dim=1))

    @property
    def _options(self) -> Options:
        return cast(MSELogits.Options, self.options)
