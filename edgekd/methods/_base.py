"""The contract of a method: who learns from whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from edgekd import spec
from edgekd.losses._base import Loss

__all__ = ["Batch", "Method", "Term", "WeightedLoss"]


@dataclass(frozen=True)
class Batch:
    """One training batch as the model sees it.

    Args:
        inputs: normalised and augmented, shape (B, C, H, W).
        labels: class probabilities, shape (B, K).
        ids: indices of the samples in the training split, shape (B,).
        epoch: 0-based.
        progress: fraction of training done, in [0, 1).
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    epoch: int
    progress: float


@dataclass(frozen=True)
class WeightedLoss:
    """A named loss and its weight in the sum."""

    name: str
    loss: Loss
    weight: float


@dataclass(frozen=True)
class Term:
    """One term of a step's objective: its raw value (a scalar tensor) and its weight."""

    value: Tensor
    weight: float


class Method(nn.Module):
    """Builds what is trained, and gives the loss terms of one step.

    Args:
        student: the network that is exported.
        teachers: never trained, never exported, always in eval mode.
        losses: the weighted terms; their connectors train with the student.
    """

    Options: ClassVar[type[spec.Options]] = spec.Options
    needs_teacher: ClassVar[bool] = True

    def __init__(self, student: nn.Module, teachers: Sequence[nn.Module], losses: Sequence[WeightedLoss]) -> None:
        super().__init__()
        self.student = student
        self.teachers = list(teachers)  # a list keeps them out of parameters(), train() and state_dict()
        self.losses = _named_once(losses)
        # a module's name must not contain the dots of a user's own `package.module:Loss`
        self.connectors = nn.ModuleDict({term.name.replace(".", "_"): term.loss for term in self.losses})

    def prepare(self, example: Tensor) -> None:
        """Check shapes and build connectors from one example input, before the optimizer exists."""
        raise NotImplementedError

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The loss terms of one step, by name."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Mapping[str, Term]:
        """The same as `terms`; a wrapper for several processes calls it."""
        return self.terms(batch)

    def trained(self) -> Iterable[nn.Module]:
        """Modules whose parameters the optimizer gets."""
        return (self.student, self.connectors)

    def exported(self) -> nn.Module:
        """The network to ship: no teacher, connector, tap or peer in it."""
        return self.student


def _named_once(losses: Sequence[WeightedLoss]) -> tuple[WeightedLoss, ...]:
    """Tell two terms of the same loss apart: hint, hint#2."""
    seen: dict[str, int] = {}
    named = []
    for term in losses:
        seen[term.name] = seen.get(term.name, 0) + 1
        name = term.name if seen[term.name] == 1 else f"{term.name}#{seen[term.name]}"
        named.append(WeightedLoss(name, term.loss, term.weight))
    return tuple(named)
