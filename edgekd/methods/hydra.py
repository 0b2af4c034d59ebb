"""One student with a head for each teacher; the mean of its heads is what is exported (Hydra)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from edgekd import spec
from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs
from edgekd.methods._base import Batch, Term
from edgekd.methods._observe import example_outputs, observe
from edgekd.methods._taught import Taught

__all__ = ["Hydra"]


class Hydra(Taught):
    """Let every teacher of an ensemble teach a head of its own, so that what they disagree about is not averaged away.

    A head is the student's own classifier and a linear correction of the features before it; the corrections sum to
    zero. So the student's own logits are at every moment the mean of the heads' logits, and the exported student is
    the plain network: no head is left to fold. Losses on logits are averaged over the heads, each against its teacher;
    those that need no teacher see the mean, and losses on features see the teachers as `offline` does.

    Heads of several layers, as in the paper's larger experiments, would not fold into the student, and are not built.

    Reference: Tran, Veeling, Roth, Swiatkowski, Dillon, Snoek, Mandt, Salimans, Nowozin, Jenatton, "Hydra: Preserving
    Ensemble Diversity for Model Distillation", 2020, arXiv:2001.04694, section 3.
    """

    class Options(spec.Options):
        """Options of `hydra`."""

        student_tap: str = Field(description="the student's module whose output goes into its classifier")

    corrections: nn.ModuleList

    @classmethod
    def student_taps(cls, options: spec.Options) -> tuple[str, ...]:
        """The features that the heads read."""
        return (cast(Hydra.Options, options).student_tap,)

    def prepare(self, example: Tensor) -> None:
        """See `Taught.prepare`; also builds the heads, which start as the student's own classifier.

        Raises:
            MismatchError: the tap is no feature vector or map.
        """
        super().prepare(example)
        student = example_outputs(self._networks[0], example)
        features = student.taps[self._tap]
        if features.dim() not in (2, 4):
            raise MismatchError(
                f"hydra needs features of shape (B, D) or (B, D, H, W), but tap '{self._tap}' gives"
                f" {tuple(features.shape)}. Tap the module before the classifier."
            )
        size, classes = features.shape[1], student.logits.shape[1]
        self.corrections = nn.ModuleList(nn.Linear(size, classes) for _ in self.teachers)
        for layer in self.corrections.parameters():
            nn.init.zeros_(layer)
        self.corrections.to(example.device)

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every loss, by name; those on logits are means over the heads."""
        student = observe(self._networks[0], batch.inputs)
        step = self._step(batch, student)
        heads = [
            replace(step, student=Outputs(logits, student.taps), teachers=(teacher,), shares=None, mixture=None)
            for logits, teacher in zip(self.heads(student), step.teachers, strict=True)
        ]
        terms = {}
        for term in self.losses:
            own = term.loss.needs_teacher and not term.loss.teacher_taps()
            value = torch.stack([term.loss(head) for head in heads]).mean() if own else term.loss(step)
            terms[term.name] = Term(value, term.weight)
        return terms

    def heads(self, student: Outputs) -> list[Tensor]:
        """The logits of every head, each (B, K); their mean is the student's own."""
        features = student.taps[self._tap]
        features = features.mean(dim=(2, 3)) if features.dim() == 4 else features
        moved = torch.stack([layer(features) for layer in self.corrections])
        return list(student.logits + (moved - moved.mean(dim=0)))

    def trained(self) -> tuple[nn.Module, ...]:
        """The student, the losses' connectors and the heads."""
        return (self.student, self.connectors, self.corrections)

    @property
    def _tap(self) -> str:
        return cast(Hydra.Options, self.options).student_tap
