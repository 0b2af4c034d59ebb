"""What losses on logits share: options, standardisation, and which numbers of classes they can work with."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from edgekd import spec
from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step, float32

__all__ = [
    "SoftmaxOptions",
    "TauOptions",
    "classes_of",
    "needs_softmax",
    "needs_three_classes",
    "needs_to_standardize",
    "softened_logits",
    "standardized",
]

SMALLEST_DEVIATION = 1e-7  # the epsilon of the published code


class TauOptions(spec.Options):
    """Options of a loss that softens logits."""

    tau: float = Field(4.0, gt=0.0, allow_inf_nan=False, description="temperature; 4 suits CIFAR, 1 ImageNet")


class SoftmaxOptions(TauOptions):
    """Options of a loss on softened class probabilities."""

    standardize: bool = Field(
        False, description="give every sample's logits mean 0 and deviation 1 first; published with tau 2 and weight 9"
    )


def standardized(logits: Tensor) -> Tensor:
    """Each sample's logits with mean 0 and standard deviation 1: how classes relate, without how large logits are.

    A student of small capacity need not reach the teacher's range then. The scale that is left out also carried the
    teacher's confidence, so look at the student's calibration.

    The deviation is the one over K - 1, as in the code that the published tau and weight belong to. A sample whose
    logits are all equal becomes zeros; its gradient is not divided by their deviation, which would make it 1e7 times
    too large.

    Args:
        logits: shape (B, K), K >= 3: of two logits only the larger one's place is left.

    Returns:
        Same shape, float32.

    Reference: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", 2024, arXiv:2403.01427,
    algorithm 1.

    >>> import torch
    >>> standardized(torch.tensor([[1.0, 3.0, 5.0]]))  # mean 3, deviation sqrt((4 + 0 + 4) / 2) = 2
    tensor([[-1.,  0.,  1.]])
    """
    values = float32(logits)
    deviation = values.std(dim=1, keepdim=True)
    spread = torch.where(deviation > SMALLEST_DEVIATION, deviation + SMALLEST_DEVIATION, 1.0)
    return (values - values.mean(dim=1, keepdim=True)) / spread


def softened_logits(step: Step, *, tau: float, standardize: bool = False) -> Tensor:
    """Logits whose softmax at this tau is what the teachers say: the only teacher's own, or those of several's mean.

    Probabilities are averaged after they are softened, each teacher's apart: a sure teacher would otherwise drown
    the others' small probabilities.

    Args:
        step: with one teacher, or with several and their shares.
        tau: temperature, > 0.
        standardize: standardise each teacher's logits first.

    Returns:
        Shape (B, K).
    """
    if step.shares is None:
        return standardized(step.teacher.logits) if standardize else step.teacher.logits
    if standardize:
        step = replace(step, teachers=[Outputs(standardized(one.logits)) for one in step.teachers])
    return tau * step.log_targets(tau)


def classes_of(loss: str, student: Outputs, teacher: Outputs | None) -> int:
    """K of the logits, the same on both sides.

    Raises:
        MismatchError: logits that are not (B, K), or another K on each side.
    """
    shapes = [tuple(side.logits.shape) for side in (student, teacher) if side is not None]
    if any(len(shape) != 2 for shape in shapes) or len({shape[-1] for shape in shapes}) != 1:
        sides = ", ".join(f"{side} {shape}" for side, shape in zip(("student", "teacher"), shapes, strict=False))
        raise MismatchError(
            f"{loss} compares logits of shape (B, K) with one K, got: {sides}. Use classifiers of the same classes."
        )
    return int(shapes[0][1])


def needs_softmax(loss: str, student: Outputs, teacher: Outputs | None, *, instead: str) -> int:
    """K of the logits, which a softmax must be able to tell apart.

    Raises:
        MismatchError: one logit, or sides that do not fit; the message names the loss to use instead.
    """
    classes = classes_of(loss, student, teacher)
    if classes == 1:
        raise MismatchError(
            f"{loss} takes a softmax over the classes, but the networks give 1 logit, whose softmax is always 1."
            f" Use {instead}, or give the networks two classes."
        )
    return classes


def needs_to_standardize(loss: str, classes: int) -> None:
    """Refuse to standardise so few logits that their values no longer matter.

    Raises:
        MismatchError: fewer than three classes.
    """
    if classes < 3:
        raise MismatchError(
            f"{loss} cannot standardize {classes} logits: two become 0.71 and -0.71 whatever they were, so only the"
            " argmax is left, and one has no deviation. Set standardize = false."
        )


def needs_three_classes(loss: str, classes: int, *, because: str, instead: str) -> None:
    """Refuse two classes for a loss that says nothing of them.

    Raises:
        MismatchError: fewer than three classes.
    """
    if classes < 3:
        raise MismatchError(f"{loss} needs three classes or more, got {classes}: {because}. Use {instead}.")
