"""The contract of a loss: which knowledge is matched, on which taps, through which connector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgekd import spec

__all__ = ["Loss", "Outputs", "Step"]


@dataclass(frozen=True)
class Outputs:
    """What a network gave for one batch.

    Args:
        logits: shape (B, K).
        taps: named intermediate tensors, batch first.
    """

    logits: Tensor
    taps: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Everything a loss may look at in one training step.

    Args:
        student: its outputs, with gradient.
        teachers: their outputs, without gradient; empty for a student that learns alone.
        labels: class probabilities, shape (B, K): one-hot, or mixed and smoothed.
        ids: indices of the samples in the training split, shape (B,).
        epoch: 0-based.
        progress: fraction of training done, in [0, 1).
    """

    student: Outputs
    teachers: Sequence[Outputs]
    labels: Tensor
    ids: Tensor
    epoch: int
    progress: float

    @property
    def teacher(self) -> Outputs:
        """The only teacher, or the first of several."""
        return self.teachers[0]


class Loss(nn.Module):
    """A criterion on one `Step`; the pure formula is a function beside the class.

    Subclasses set `family` and `needs_teacher`, may define their own `Options`, name the taps they read
    in `student_taps` and `teacher_taps`, and build in `connect` the connectors that join shapes. A loss's
    parameters are its connectors': they train with the student and are never exported.
    """

    Options: ClassVar[type[spec.Options]] = spec.Options
    family: ClassVar[Literal["response", "feature", "relation", "attention", "graph"]]
    needs_teacher: ClassVar[bool] = True

    def __init__(self, options: spec.Options) -> None:
        super().__init__()
        self.options = options

    def student_taps(self) -> tuple[str, ...]:
        """Names of the student's modules whose outputs this loss reads."""
        return ()

    def teacher_taps(self) -> tuple[str, ...]:
        """Names of the teacher's modules whose outputs this loss reads."""
        return ()

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Look at example outputs once before training: check shapes, build connectors.

        Raises:
            MismatchError: shapes that cannot be joined; the message names both sides.
        """

    def forward(self, step: Step) -> Tensor:
        """The loss of one step: a scalar in float32."""
        raise NotImplementedError


def float32(tensor: Tensor) -> Tensor:
    """Leave autocast's half precision, where exponentials and small differences lose their digits."""
    return tensor.to(torch.float32)
