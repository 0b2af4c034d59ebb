"""Match a teacher's intermediate features through a trained 1x1 convolution (FitNets)."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd import spec
from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step, float32

__all__ = ["Hint", "hint"]


def hint(guided: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared difference of two feature tensors.

    The mean is over the batch and over every feature, so that the weight of the term does not depend on
    the size of the tapped layer. Maps of different height and width are averaged down to the smaller of
    each: enlarging the small one would ask the student for detail that the other side does not hold.

    Args:
        guided: the student's features after the connector, shape (B, C, H, W) or (B, C).
        target: the teacher's, same C; no gradient flows into it.

    Returns:
        Scalar, float32.

    Reference: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", 2014,
    arXiv:1412.6550, equation 3.

    >>> import torch
    >>> hint(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])).item()  # (4 + 0) / 2 / 2
    1.0
    """
    ours, theirs = float32(guided), float32(target.detach())
    if ours.dim() == 4:
        size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
        ours, theirs = (F.adaptive_avg_pool2d(one, size) for one in (ours, theirs))
    return 0.5 * F.mse_loss(ours, theirs)


class Hint(Loss):
    """Learn to predict a teacher's layer from a student's layer.

    The connector is a 1x1 convolution (a linear layer for features without height and width). It starts as
    the identity where the channels agree, is trained with the student, and is never exported.
    """

    class Options(spec.Options):
        """Options of `hint`."""

        student_tap: str = Field(description="the student's module whose output is guided")
        teacher_tap: str = Field(description="the teacher's module whose output is the hint")

    family = "feature"
    connector: nn.Module

    def student_taps(self) -> tuple[str, ...]:
        """The guided layer."""
        return (self._options.student_tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        """The hint layer."""
        return (self._options.teacher_tap,)

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Build the connector for the two layers' channels.

        Raises:
            MismatchError: one side has height and width and the other has not.
        """
        assert teacher is not None
        ours = student.taps[self._options.student_tap]
        theirs = teacher.taps[self._options.teacher_tap]
        if ours.dim() != theirs.dim() or ours.dim() not in (2, 4):
            raise MismatchError(
                f"hint cannot join student tap '{self._options.student_tap}' of shape {tuple(ours.shape)} and teacher"
                f" tap '{self._options.teacher_tap}' of shape {tuple(theirs.shape)}. Tap two layers with (B, C, H, W),"
                " or two with (B, C)."
            )
        self.connector = _connector(ours.shape[1], theirs.shape[1], spatial=ours.dim() == 4)

    def forward(self, step: Step) -> Tensor:
        """The hint term of one step."""
        guided = self.connector(step.student.taps[self._options.student_tap])
        return hint(guided, step.teacher.taps[self._options.teacher_tap])

    @property
    def _options(self) -> Options:
        return cast(Hint.Options, self.options)


def _connector(inputs: int, outputs: int, *, spatial: bool) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, 1) if spatial else nn.Linear(inputs, outputs)
    if inputs == outputs:
        nn.init.dirac_(layer.weight) if spatial else nn.init.eye_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
