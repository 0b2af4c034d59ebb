"""The values of loss terms over an epoch, and the first one that is not a number."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekd.errors import TrainingDiverged
from edgekd.methods._base import Term
from edgekd.spec import Frozen

__all__ = ["Ledger", "TermMean"]


class TermMean(Frozen):
    """One loss term, averaged over the steps of an epoch: as computed, and as it entered the sum."""

    raw: float
    weighted: float


class Ledger:
    """Collects the terms of each step and reads them every `interval` steps.

    Reading a value makes the processor wait for an accelerator, so there it happens seldom; the step that
    went wrong is named all the same.

    Args:
        interval: steps between two looks at the values.
        kept: what to say about the checkpoint when training diverges.
    """

    def __init__(self, *, interval: int, kept: str) -> None:
        self._interval = interval
        self.kept = kept
        self._names: tuple[str, ...] = ()
        self._weights: list[float] = []
        self._waiting: list[tuple[int, Tensor]] = []
        self._sums = torch.zeros(0, dtype=torch.float64)
        self._count = 0
        self.last_loss: float | None = None

    def add(self, terms: Mapping[str, Term], *, step: int, epoch: int) -> None:
        """Note the terms of one step.

        Args:
            terms: by name; the same names in every step of an epoch.
            step: 0-based, over the whole training.
            epoch: 0-based.

        Raises:
            TrainingDiverged: a term of this step, or of one since the last look, is NaN or infinite.
        """
        self._names = tuple(terms)
        self._weights = [term.weight for term in terms.values()]
        self._waiting.append((step, torch.stack([term.value.detach().float() for term in terms.values()])))
        if len(self._waiting) >= self._interval:
            self.read(epoch=epoch)

    def read(self, *, epoch: int) -> None:
        """Look at every step since the last look; see `add`."""
        if not self._waiting:
            return
        values = torch.stack([value for _, value in self._waiting]).cpu()
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            row, column = (int(index) for index in (~finite).nonzero()[0])
            raise TrainingDiverged(
                f"Training diverged at step {self._waiting[row][0] + 1} (epoch {epoch + 1}): loss term"
                f" '{self._names[column]}' is {values[row, column].item()}. {self.kept}"
                " Lower the learning rate, warm up for longer, or set clip_grad_norm."
            )
        doubles = values.double()
        self._sums = doubles.sum(0) if self._count == 0 else self._sums + doubles.sum(0)
        self._count += len(values)
        self.last_loss = float((doubles[-1] * torch.tensor(self._weights, dtype=torch.float64)).sum())
        self._waiting.clear()

    def close_epoch(self) -> dict[str, TermMean]:
        """The means since the last call, and start again."""
        means = (self._sums / max(1, self._count)).tolist()
        self._count = 0
        return {
            name: TermMean(raw=mean, weighted=mean * weight)
            for name, mean, weight in zip(self._names, means, self._weights, strict=True)
        }
