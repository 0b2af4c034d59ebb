"""A trained teacher, frozen, teaches the student."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgekd.errors import UsageError
from edgekd.losses._base import Step
from edgekd.methods._base import Batch, Method, Term
from edgekd.methods._observe import check_classes, example_outputs, observe, observe_frozen, with_taps

__all__ = ["Offline"]


class Offline(Method):
    """Distil one frozen teacher: both networks see the same augmented batch.

    The teacher is always in eval mode and its outputs carry no gradient.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531;
    same batch for both: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent",
    2021, arXiv:2106.05237.
    """

    def prepare(self, example: Tensor) -> None:
        """Check both sides on one example, and build the connectors.

        Args:
            example: inputs, shape (B, C, H, W).

        Raises:
            UsageError: not exactly one teacher, or a tap that is not there.
            MismatchError: the two sides do not fit; the message names both.
        """
        if len(self.teachers) != 1:
            raise UsageError(f"Method 'offline' learns from one teacher, got {len(self.teachers)}.")
        losses = [term.loss for term in self.losses]
        # a plain attribute holding modules would register them a second time: a tuple does not
        self._networks = (
            with_taps(self.student, losses, side="student"),
            with_taps(self.teachers[0], losses, side="teacher"),
        )
        student, teacher = (example_outputs(network, example) for network in self._networks)
        check_classes(student, [teacher])
        for loss in losses:
            loss.connect(student, teacher if loss.needs_teacher else None)

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every loss, by name."""
        student, teacher = self._networks
        step = Step(
            student=observe(student, batch.inputs),
            teachers=(observe_frozen(teacher, batch.inputs),),
            labels=batch.labels,
            ids=batch.ids,
            epoch=batch.epoch,
            progress=batch.progress,
        )
        return {term.name: Term(term.loss(step), term.weight) for term in self.losses}
