"""Match where the networks look: normalised spatial attention maps (attention transfer)."""

from __future__ import annotations

from typing import Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from edgekd import spec
from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step, float32

__all__ = ["Attention", "attention"]


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two attention maps.

    The map of a layer is the energy of each position, the sum over channels of |F|^2, as a vector of
    length one over the positions.

    Equation 2 of the paper takes the norm of the difference; this is its square, averaged over positions,
    which is what the published experiments ran and what their weight of about 1000 belongs to. It has a
    gradient where the maps agree; the norm has none there.

    Args:
        student: features, shape (B, C, H, W).
        teacher: features, any C, same or other H and W; no gradient flows into it. The larger map is
            averaged down to the smaller.

    Returns:
        Scalar, float32, in [0, 2 / (H * W)]: maps have length one and no negative entries.

    Reference: Zagoruyko, Komodakis, "Paying More Attention to Attention", 2016, arXiv:1612.03928, equation 2.

    >>> import torch
    >>> s, t = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    >>> attention(s, t).item()  # maps (1, 0) and (0, 1)
    1.0
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    ours, theirs = (F.adaptive_avg_pool2d(_energy(one), size) for one in (student, teacher.detach()))
    return F.mse_loss(F.normalize(ours.flatten(1), dim=1), F.normalize(theirs.flatten(1), dim=1))


class Attention(Loss):
    """Learn the teacher's attention maps, layer pair by layer pair; no connector is needed."""

    class Options(spec.Options):
        """Options of `attention`."""

        student_taps: list[str] = Field(min_length=1, description="the student's layers")
        teacher_taps: list[str] = Field(min_length=1, description="the teacher's layers, in the same order")

        @model_validator(mode="after")
        def _pairs(self) -> Self:
            if len(self.student_taps) != len(self.teacher_taps):
                raise ValueError(
                    f"student_taps and teacher_taps must pair up, got {len(self.student_taps)} and"
                    f" {len(self.teacher_taps)}"
                )
            return self

    family = "attention"

    def student_taps(self) -> tuple[str, ...]:
        """The student's layers."""
        return tuple(self._options.student_taps)

    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's layers."""
        return tuple(self._options.teacher_taps)

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check that every tap is a feature map.

        Raises:
            MismatchError: a tap without height and width.
        """
        assert teacher is not None
        for ours, theirs in zip(self._options.student_taps, self._options.teacher_taps, strict=True):
            shapes = tuple(student.taps[ours].shape), tuple(teacher.taps[theirs].shape)
            if any(len(shape) != 4 for shape in shapes):
                raise MismatchError(
                    f"attention needs taps of shape (B, C, H, W): student '{ours}' has {shapes[0]}, teacher"
                    f" '{theirs}' has {shapes[1]}. Tap layers before the pooling."
                )

    def forward(self, step: Step) -> Tensor:
        """The sum over the layer pairs of one step."""
        terms = [
            attention(step.student.taps[ours], step.teacher.taps[theirs])
            for ours, theirs in zip(self._options.student_taps, self._options.teacher_taps, strict=True)
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    @property
    def _options(self) -> Options:
        return cast(Attention.Options, self.options)


def _energy(features: Tensor) -> Tensor:
    # a map's scale is normalised away, so it is taken out first: squares of large half-precision
    # activations stay far from infinity, and their sum from the range where precision is lost
    values = float32(features)
    largest = values.detach().abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (values / largest).pow(2).sum(dim=1, keepdim=True)
