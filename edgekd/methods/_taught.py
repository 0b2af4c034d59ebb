"""What every method with frozen teachers does the same: observe, mix them into one, hand a step to the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgekd.errors import UsageError
from edgekd.losses._base import Outputs, Step
from edgekd.methods._base import Batch, Method, Term
from edgekd.methods._observe import check_classes, example_outputs, observe, with_taps
from edgekd.methods._panel import Panel, given_shares, mixture

__all__ = ["Taught"]


class Taught(Method):
    """Frozen teachers and a student see the same batch; a subclass says how much each teacher counts."""

    def prepare(self, example: Tensor) -> None:
        """Check all sides on one example, and build the connectors.

        Args:
            example: inputs, shape (B, C, H, W).

        Raises:
            UsageError: no teacher, or a tap that is not there.
            MismatchError: the sides do not fit; the message names both.
        """
        if not self.teachers:
            raise UsageError("This method learns from a teacher, got none. Add [teacher] to the recipe.")
        losses = [term.loss for term in self.losses]
        self._panel = Panel(self.teachers, losses)
        # a plain attribute holding modules would register them a second time: a tuple does not
        more = type(self).student_taps(self.options)
        self._networks = (with_taps(self.student, losses, side="student", more=more),)
        student, teachers = example_outputs(self._networks[0], example), self._panel.example(example)
        check_classes(student, teachers)
        self.connect(losses, student, self._as_one(teachers, torch.zeros_like(student.logits))[0])

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every loss, by name."""
        step = self._step(batch, observe(self._networks[0], batch.inputs))
        return {term.name: Term(term.loss(step), term.weight) for term in self.losses}

    def _step(self, batch: Batch, student: Outputs) -> Step:
        teachers = self._panel.observe(batch.inputs, batch.ids, batch.epoch)
        mixed, shares = self._as_one(teachers, batch.labels)
        several = len(teachers) > 1
        return Step(
            student=student,
            teachers=teachers,
            labels=batch.labels,
            ids=batch.ids,
            epoch=batch.epoch,
            progress=batch.progress,
            shares=shares if several else None,
            mixture=mixed if several else None,
        )

    def _as_one(self, teachers: Sequence[Outputs], labels: Tensor) -> tuple[Outputs, Tensor]:
        shares = self._shares(teachers, labels)
        return (teachers[0] if len(teachers) == 1 else mixture(teachers, shares)), shares

    def _shares(self, teachers: Sequence[Outputs], labels: Tensor) -> Tensor:
        """How much each teacher counts for each sample, shape (B, T), rows sum to 1."""
        return given_shares([1.0] * len(teachers), labels)
