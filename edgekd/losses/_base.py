"""The contract of a loss: which knowledge is matched, on which taps, through which connector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgekd import spec

__all__ = ["Loss", "Outputs", "Split", "Step", "float32", "mixed"]

_TINY = 1e-38  # a share of 0 in the logarithm


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
class Split:
    """What is known of the training split before the first step.

    Args:
        labels: class indices, int64, shape (N,), on the CPU; -1 where a sample has none.
        classes: K.
    """

    labels: Tensor
    classes: int

    @property
    def labelled(self) -> bool:
        """Every sample has a label."""
        return not bool((self.labels < 0).any())


@dataclass(frozen=True)
class Step:
    """Everything a loss may look at in one training step.

    Args:
        student: its outputs, with gradient.
        teachers: their outputs, without gradient; empty for a student that learns alone.
        labels: class probabilities, shape (B, K): one-hot, or mixed and smoothed; zeros for a sample without label.
        ids: indices of the samples in the training split, shape (B,).
        epoch: 0-based.
        progress: fraction of training done, in [0, 1).
        shares: how much each of several teachers counts for each sample, shape (B, T), rows sum to 1; None for one.
        mixture: several teachers seen as one, by these shares; None for one.
    """

    student: Outputs
    teachers: Sequence[Outputs]
    labels: Tensor
    ids: Tensor
    epoch: int
    progress: float
    shares: Tensor | None = None
    mixture: Outputs | None = None

    @property
    def teacher(self) -> Outputs:
        """The only teacher, or several as one: log of their mean probabilities, and the taps of all."""
        return self.teachers[0] if self.mixture is None else self.mixture

    def log_targets(self, tau: float) -> Tensor:
        """Log of the teachers' probabilities softened by tau, averaged by their shares; float32, shape (B, K)."""
        each = [torch.log_softmax(float32(one.logits.detach()) / tau, dim=1) for one in self.teachers]
        return each[0] if self.shares is None else mixed(each, self.shares)


class Loss(nn.Module):
    """A criterion on one `Step`; the pure formula is a function beside the class.

    Subclasses set `family` and, where they differ, the facts below; they may define their own `Options`, name the taps
    they read in `student_taps` and `teacher_taps`, and build in `connect` the connectors that join shapes. A loss's
    parameters are its connectors': they train with the student and are never exported. Its buffers are its memory:
    they are kept in checkpoints.
    """

    Options: ClassVar[type[spec.Options]] = spec.Options
    family: ClassVar[Literal["response", "feature", "relation", "attention", "graph"]]
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    """Means nothing without labels; a run on unlabelled data stops before its first step."""
    batchwise: ClassVar[bool] = False
    """The value depends on which samples share a batch; the loss gathers them from every process."""
    zero_at_teacher: ClassVar[bool] = True
    """The value is 0, and flat, where the student equals the teacher."""
    split: Split | None = None
    """The training split, set before `connect`; None outside of a run."""

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


def mixed(log_probabilities: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Log of a weighted mean of probabilities, shape (B, K).

    Args:
        log_probabilities: one (B, K) for each teacher.
        shares: weights, shape (B, T), rows sum to 1.
    """
    stacked = torch.stack(list(log_probabilities), dim=1) + shares.clamp_min(_TINY).log().unsqueeze(2)
    return torch.logsumexp(stacked, dim=1)


def float32(tensor: Tensor) -> Tensor:
    """Leave autocast's half precision, where exponentials and small differences lose their digits."""
    return tensor.to(torch.float32)
