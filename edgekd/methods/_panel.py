"""Several teachers seen as one: their taps under one roof, their probabilities averaged.

A loss names a tap of the first teacher as it is called there, and one of a later teacher with its number in front:
`layer3` and `2:layer3`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from edgekd.errors import UsageError
from edgekd.losses._base import Loss, Outputs, float32, mixed
from edgekd.methods._observe import example_outputs, observe_frozen
from edgekd.taps import Tapped, TupleOutputs, tapped

__all__ = ["Panel", "confident_shares", "given_shares", "mixture", "teacher_and_tap"]

_NUMBERED = re.compile(r"^([1-9][0-9]*):(.+)$")


class Panel:
    """Frozen teachers, each wrapped with the taps that losses read from it.

    Args:
        teachers: in the recipe's order.
        losses: whose `teacher_taps` are wanted.

    Raises:
        UsageError: a tap that is not there, or of a teacher that is not there.
    """

    def __init__(self, teachers: Sequence[nn.Module], losses: Iterable[Loss]) -> None:
        wanted: list[list[str]] = [[] for _ in teachers]
        for name in (name for loss in losses for name in loss.teacher_taps()):
            number, tap = teacher_and_tap(name)
            if number > len(teachers):
                raise UsageError(
                    f"Tap '{name}' is of teacher {number}, but there {_are(len(teachers))}. Number the teachers from 1,"
                    " [teacher] first."
                )
            wanted[number - 1].append(tap)
        # plain tuples: a module's attribute would register the teachers as its own
        self.networks: tuple[Tapped | TupleOutputs, ...] = tuple(
            tapped(teacher, names) for teacher, names in zip(teachers, wanted, strict=True)
        )

    def observe(self, inputs: Tensor, ids: Tensor | None = None, epoch: int | None = None) -> tuple[Outputs, ...]:
        """Every teacher's outputs for a batch, without gradient; taps of later ones carry their number."""
        return _numbered([observe_frozen(network, inputs, ids, epoch) for network in self.networks])

    def example(self, inputs: Tensor) -> tuple[Outputs, ...]:
        """The same for an example, leaving no trace in the teachers."""
        return _numbered([example_outputs(network, inputs) for network in self.networks])


def mixture(outputs: Sequence[Outputs], shares: Tensor) -> Outputs:
    """Several teachers as one: the log of their averaged probabilities, and all their taps.

    Probabilities are averaged and not logits, whose scale differs from teacher to teacher.

    Args:
        outputs: of every teacher, logits (B, K).
        shares: weights, shape (B, T), rows sum to 1.
    """
    logits = mixed([torch.log_softmax(float32(one.logits), dim=1) for one in outputs], shares)
    return Outputs(logits, {name: tap for one in outputs for name, tap in one.taps.items()})


def confident_shares(outputs: Sequence[Outputs], labels: Tensor) -> Tensor:
    """Shares that are larger for teachers whose prediction is closer to the label, shape (B, T).

    w_k = (1 - softmax_k(CE_k)) / (K - 1) over K teachers; a single one has all.

    Args:
        outputs: of every teacher.
        labels: class probabilities, shape (B, K).

    Reference: Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", 2022, arXiv:2201.00007,
    equations 2 and 3.
    """
    errors = [-(labels * torch.log_softmax(float32(one.logits), dim=1)).sum(dim=1) for one in outputs]
    if len(errors) == 1:
        return torch.ones_like(errors[0]).unsqueeze(1)
    return (1 - torch.softmax(torch.stack(errors, dim=1), dim=1)) / (len(errors) - 1)


def given_shares(weights: Sequence[float], labels: Tensor) -> Tensor:
    """The same shares for every sample, shape (B, T).

    Args:
        weights: one for each teacher, not all 0; scaled to sum to 1.
        labels: shape (B, K), for B and the device.
    """
    return (torch.tensor(weights, device=labels.device) / sum(weights)).expand(len(labels), -1)


def _numbered(outputs: Sequence[Outputs]) -> tuple[Outputs, ...]:
    named = []
    for number, one in enumerate(outputs, start=1):
        taps = {f"{number}:{name}": tap for name, tap in one.taps.items()}
        named.append(Outputs(one.logits, {**one.taps, **taps} if number == 1 else taps))
    return tuple(named)


def teacher_and_tap(name: str) -> tuple[int, str]:
    """The teacher's number, counted from 1, and its own name of the tap."""
    match = _NUMBERED.match(name)
    return (int(match[1]), match[2]) if match else (1, name)


def _are(count: int) -> str:
    return "is only one" if count == 1 else f"are only {count}"
