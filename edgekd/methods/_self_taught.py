"""Self-distillation: an answer of the student itself stands where a teacher's would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from edgekd import spec
from edgekd.errors import MismatchError, UsageError
from edgekd.losses._base import Outputs, Step
from edgekd.methods._base import Batch, Context, Method, WeightedLoss
from edgekd.methods._observe import check_classes, example_outputs, with_taps

__all__ = ["SelfTaught", "even_shares", "halves", "pooled", "rows_of"]


class SelfTaught(Method):
    """What methods without a teacher share.

    The recipe's losses are of two kinds here. Those that need no teacher learn the labels. Those that need one and
    look at its logits alone compare two answers of the student, the second as the teacher's, without gradient. Losses
    that read a teacher's tap are left out: there is no teacher to tap.

    Raises:
        UsageError: one of the two kinds is missing.
    """

    needs_teacher = False

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        losses: Sequence[WeightedLoss],
        options: spec.Options | None = None,
        context: Context | None = None,
    ) -> None:
        kept = [term for term in losses if not term.loss.teacher_taps()]
        for needed, what, example in (
            (False, "that learns from the labels", "cross_entropy"),
            (True, "that compares the student's logits with other ones", "kd"),
        ):
            if not any(term.loss.needs_teacher is needed for term in kept):
                names = ", ".join(term.name for term in losses) or "none"
                raise UsageError(f"Method '{self.name}' needs a loss {what}, got: {names}. Add {example}.")
        super().__init__(student, (), kept, options, context)

    @property
    def name(self) -> str:
        """What the recipe calls this method."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def label_losses(self) -> list[WeightedLoss]:
        """Those that need no teacher."""
        return [term for term in self.losses if not term.loss.needs_teacher]

    @property
    def answer_losses(self) -> list[WeightedLoss]:
        """Those that compare two answers."""
        return [term for term in self.losses if term.loss.needs_teacher]

    def prepare(self, example: Tensor) -> None:
        """Check the network on one example, and build the connectors.

        Args:
            example: inputs, shape (B, C, H, W).

        Raises:
            MismatchError: the output is not (B, K) logits, or has too few classes for a loss.
            UsageError: a tap that is not there.
        """
        more = type(self).student_taps(self.options)
        # a plain attribute holding modules would register them a second time: a tuple does not
        self._networks = (with_taps(self.student, [term.loss for term in self.losses], side="student", more=more),)
        self._example = example_outputs(self._networks[0], example)
        check_classes(self._example, [])
        self.connect([term.loss for term in self.losses], self._example, self._example)

    def _step(self, batch: Batch, student: Outputs, teacher: Outputs | None = None) -> Step:
        """What a loss looks at; both answers have the batch's rows."""
        return Step(
            student=student,
            teachers=() if teacher is None else (Outputs(teacher.logits.detach()),),
            labels=batch.labels,
            ids=batch.ids,
            epoch=batch.epoch,
            progress=batch.progress,
        )


def even_shares(losses: Sequence[WeightedLoss]) -> list[WeightedLoss]:
    """The same losses with weights that sum to one, for a method that says itself what a group of them counts."""
    total = sum(term.weight for term in losses)
    shares = [term.weight / total if total else 1 / len(losses) for term in losses]
    return [WeightedLoss(term.name, term.loss, share) for term, share in zip(losses, shares, strict=True)]


def rows_of(outputs: Outputs, rows: Tensor | slice) -> Outputs:
    """What a network gave for some samples of a batch."""
    return Outputs(outputs.logits[rows], {name: tap[rows] for name, tap in outputs.taps.items()})


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The first rows and the last ones of a batch, as many of each; of an odd batch the first half is the longer."""
    middle = (len(batch.ids) + 1) // 2
    parts = (slice(None, middle), slice(middle, None))
    first, second = (
        replace(batch, inputs=batch.inputs[rows], labels=batch.labels[rows], ids=batch.ids[rows]) for rows in parts
    )
    return first, second


def pooled(features: Tensor, *, method: str, tap: str) -> Tensor:
    """Features as vectors, shape (B, D): maps are averaged over height and width.

    Raises:
        MismatchError: neither vectors nor maps.
    """
    if features.dim() == 4:
        return features.mean(dim=(2, 3))
    if features.dim() == 2:
        return features
    raise MismatchError(
        f"{method} needs features of shape (B, D) or (B, D, H, W), but tap '{tap}' gives {tuple(features.shape)}."
        " Tap a module that gives one of them."
    )
