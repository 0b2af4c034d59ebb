"""The network learns alone, from the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from edgekd import spec
from edgekd.errors import UsageError
from edgekd.losses._base import Step
from edgekd.methods._base import Batch, Context, Method, Term, WeightedLoss
from edgekd.methods._observe import check_classes, example_outputs, observe, with_taps

__all__ = ["Alone"]


class Alone(Method):
    """Train without a teacher: teachers themselves, and the baseline a distilled student is held against.

    Losses that need a teacher are left out, and the weights of the others are scaled to sum to one. A
    recipe that gives the labels a weight of 0.1 beside a teacher would otherwise train its baseline with a
    tenth of the gradient, and the comparison would flatter the teacher.

    Raises:
        UsageError: no loss is left.
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
        kept = [term for term in losses if not term.loss.needs_teacher]
        if not kept:
            names = ", ".join(term.name for term in losses) or "none"
            raise UsageError(
                f"Method 'alone' needs a loss that works without a teacher, got: {names}. Add cross_entropy."
            )
        total = sum(term.weight for term in kept)
        shares = [term.weight / total if total else 1 / len(kept) for term in kept]
        rescaled = [WeightedLoss(term.name, term.loss, share) for term, share in zip(kept, shares, strict=True)]
        super().__init__(student, (), rescaled, options, context)

    def prepare(self, example: Tensor) -> None:
        """Check the network on one example, and build the connectors.

        Args:
            example: inputs, shape (B, C, H, W).

        Raises:
            MismatchError: the output is not (B, K) logits.
            UsageError: a tap that is not there.
        """
        losses = [term.loss for term in self.losses]
        self._networks = (with_taps(self.student, losses, side="student"),)
        outputs = example_outputs(self._networks[0], example)
        check_classes(outputs, [])
        self.connect(losses, outputs, None)

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every loss, by name."""
        step = Step(
            student=observe(self._networks[0], batch.inputs),
            teachers=(),
            labels=batch.labels,
            ids=batch.ids,
            epoch=batch.epoch,
            progress=batch.progress,
        )
        return {term.name: Term(term.loss(step), term.weight) for term in self.losses}
