"""Cross-entropy with labels that are independent for each class (binary and multi-label tasks)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._logits import classes_of

__all__ = ["BinaryCrossEntropy", "binary_cross_entropy"]


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the classes of the cross-entropy of each class's yes or no, mean over the batch.

    For one logit z it is the cross-entropy of the two logits (z, 0). The classes are summed, not averaged as torch
    does by default: divide the weight by K for that.

    Args:
        logits: shape (B, K), K >= 1.
        labels: probability of each class, same shape, in [0, 1]; a row need not sum to one, and a row of zeros says
            that the sample is of no class, not that it has no label.

    Returns:
        Scalar in nats, float32.

    >>> import torch
    >>> z, y = torch.tensor([[0.0, 1.0986123]]), torch.tensor([[1.0, 0.0]])  # probabilities 0.5 and 0.75
    >>> round(binary_cross_entropy(z, y).item(), 4)  # ln 2 + ln 4
    2.0794
    """
    return F.binary_cross_entropy_with_logits(float32(logits), float32(labels), reduction="sum") / len(logits)


class BinaryCrossEntropy(Loss):
    """Learn labels that do not exclude each other: any number of classes may be right for a sample."""

    family = "response"
    needs_teacher = False
    needs_labels = True

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check that there is a label for every logit.

        Raises:
            MismatchError: the data has another number of classes.
        """
        classes = classes_of("binary_cross_entropy", student, None)
        if self.split is not None and self.split.classes != classes:
            raise MismatchError(
                f"binary_cross_entropy needs one label for each logit: the student gives {classes}, the data has"
                f" {self.split.classes} classes. Give the student as many outputs as the data has classes."
            )

    def forward(self, step: Step) -> Tensor:
        """The cross-entropy of one step."""
        return binary_cross_entropy(step.student.logits, step.labels)
