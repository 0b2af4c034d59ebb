"""Losses on pairs of layers: their taps, the check of their shapes, and maps of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self, cast

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from edgekd import spec
from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step, float32

__all__ = ["PairOptions", "PairedLoss"]


class PairOptions(spec.Options):
    """The layers of a `PairedLoss`."""

    student_taps: list[str] = Field(min_length=1, description="the student's layers, from shallow to deep")
    teacher_taps: list[str] = Field(min_length=1, description="the teacher's layers, in the same order")

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.student_taps) != len(self.teacher_taps):
            raise ValueError(
                f"student_taps and teacher_taps must pair up, got {len(self.student_taps)} and {len(self.teacher_taps)}"
            )
        return self


class PairedLoss(Loss):
    """A loss on pairs of layers, whose options are `PairOptions`.

    Subclasses build their connectors in `_build` and get the maps of a step from `_maps`.
    """

    Options: ClassVar[type[spec.Options]] = PairOptions
    takes_vectors: ClassVar[bool] = True
    """Features of shape (B, C) are taken too, as maps of one position."""

    def student_taps(self) -> tuple[str, ...]:
        """The student's layers."""
        return tuple(cast(PairOptions, self.options).student_taps)

    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's layers."""
        return tuple(cast(PairOptions, self.options).teacher_taps)

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check the shapes of every pair and build the connectors.

        Raises:
            MismatchError: two taps that are neither two maps nor, where the loss takes them, two vectors.
        """
        assert teacher is not None
        for ours, theirs in zip(self.student_taps(), self.teacher_taps(), strict=True):
            self._check(ours, student.taps[ours], theirs, teacher.taps[theirs])
        self._build(self._joined(student, teacher))

    def _build(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Build connectors for examples of what `_maps` gives."""

    def _maps(self, step: Step) -> list[tuple[Tensor, Tensor]]:
        """(student, teacher) of every pair: float32, (B, C, H, W) with one H and W, the teacher without gradient.

        Maps of different height and width are averaged down to the smaller of each: enlarging the small one would
        ask the student for detail that the other side does not hold.
        """
        return self._joined(step.student, step.teacher)

    def _joined(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        pairs = zip(self.student_taps(), self.teacher_taps(), strict=True)
        return [_one_size(student.taps[ours], teacher.taps[theirs].detach()) for ours, theirs in pairs]

    def _check(self, our_name: str, ours: Tensor, their_name: str, theirs: Tensor) -> None:
        if ours.dim() == theirs.dim() and (ours.dim() == 4 or (ours.dim() == 2 and self.takes_vectors)):
            return
        vectors = ", or two with (B, C)" if self.takes_vectors else ""
        raise MismatchError(
            f"{type(self).__module__.rpartition('.')[2]} cannot join student tap '{our_name}' of shape"
            f" {tuple(ours.shape)} and teacher tap '{their_name}' of shape {tuple(theirs.shape)}. Tap two layers with"
            f" (B, C, H, W){vectors}."
        )


def _one_size(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    ours, theirs = (float32(one) if one.dim() == 4 else float32(one)[:, :, None, None] for one in (ours, theirs))
    if ours.shape[2:] == theirs.shape[2:]:
        return ours, theirs
    size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
    return F.adaptive_avg_pool2d(ours, size), F.adaptive_avg_pool2d(theirs, size)
