"""Trained teachers, one or several, frozen, teach the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgekd import spec
from edgekd.errors import UsageError
from edgekd.losses._base import Outputs, Step
from edgekd.methods._base import Batch, Method, Term
from edgekd.methods._observe import check_classes, example_outputs, observe, with_taps
from edgekd.methods._panel import Panel, confident_shares, given_shares, mixture

__all__ = ["Offline"]


class Offline(Method):
    """Distil frozen teachers: every network sees the same augmented batch.

    Teachers are always in eval mode and their outputs carry no gradient. Of several, losses on logits see the mean of
    their probabilities, evenly, by given shares, or by how close each teacher comes to the label of each sample; a
    loss on features names the teacher whose tap it reads, `2:layer3` for the second one's.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531;
    same batch for both: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent",
    2021, arXiv:2106.05237; several teachers: You, Xu, Xu, Tao, "Learning from Multiple Teacher Networks", 2017;
    by confidence: Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", 2022,
    arXiv:2201.00007, equations 2 to 4 (its second half, on features, is left to the losses).
    """

    class Options(spec.Options):
        """Options of `offline`; they count where there are several teachers."""

        weighting: Literal["mean", "fixed", "confidence"] = Field(
            "mean", description="how several teachers are averaged; confidence: by their error on each sample's label"
        )
        shares: list[float] | None = Field(None, description="fixed: one for each teacher; scaled to sum to 1")

        @model_validator(mode="after")
        def _together(self) -> Self:
            if (self.weighting == "fixed") != (self.shares is not None):
                raise ValueError("weighting = 'fixed' and shares belong together")
            if self.shares is not None and (min(self.shares, default=0.0) < 0 or sum(self.shares) <= 0):
                raise ValueError("shares must not be negative, nor all be 0")
            return self

    def prepare(self, example: Tensor) -> None:
        """Check all sides on one example, and build the connectors.

        Args:
            example: inputs, shape (B, C, H, W).

        Raises:
            UsageError: no teacher, shares for another number of them, or a tap that is not there.
            MismatchError: the sides do not fit; the message names both.
        """
        self._check_count()
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
        teachers = self._panel.observe(batch.inputs, batch.ids)
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
        """How much each teacher counts for each sample, shape (B, T)."""
        options = cast(Offline.Options, self.options)
        if options.weighting == "confidence":
            return confident_shares(teachers, labels)
        return given_shares(options.shares or [1.0] * len(teachers), labels)

    def _check_count(self) -> None:
        if not self.teachers:
            raise UsageError("This method learns from a teacher, got none. Add [teacher] to the recipe.")
        shares = getattr(self.options, "shares", None)
        if shares is not None and len(shares) != len(self.teachers):
            raise UsageError(f"method_options.shares has {len(shares)} values for {len(self.teachers)} teachers.")
        split = self.context.split
        by_label = getattr(self.options, "weighting", "mean") == "confidence"
        if by_label and split is not None and not split.labelled:
            raise UsageError("weighting = 'confidence' needs labels, but the training split has samples without.")
