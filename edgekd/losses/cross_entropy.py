"""Cross-entropy with the labels, hard or soft."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._logits import needs_softmax

__all__ = ["CrossEntropy", "cross_entropy"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of the cross-entropy between label probabilities and predicted ones.

    Args:
        logits: shape (B, K).
        labels: probabilities, same shape: one-hot, smoothed or mixed.

    Returns:
        Scalar in nats, float32.

    >>> import torch
    >>> round(cross_entropy(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item(), 4)  # ln 2
    0.6931
    """
    return F.cross_entropy(float32(logits), float32(labels))


class CrossEntropy(Loss):
    """Learn the labels; label smoothing and mixup arrive in them."""

    family = "response"
    needs_teacher = False

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check that there is more than one class.

        Raises:
            MismatchError: one logit.
        """
        needs_softmax("cross_entropy", student, None, instead="binary_cross_entropy")

    def forward(self, step: Step) -> Tensor:
        """The cross-entropy of one step."""
        return cross_entropy(step.student.logits, step.labels)
