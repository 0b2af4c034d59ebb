"""The values of loss terms over an epoch, and the first one that is not a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from edgekd.methods._base import Term
from edgekd.spec import Frozen

__all__ = ["Diverged", "Ledger", "TermMean"]


class TermMean(Frozen):
    """One loss term, averaged over the steps of an epoch: as computed, and as it entered the sum."""

    raw: float
    weighted: float


class Diverged(Exception):
    """A term was no number; the training loop says more about it.

    Args:
        step: 0-based, over the whole training.
        term: its name.
        value: NaN or an infinity.
    """

    def __init__(self, step: int, term: str, value: float) -> None:
        super().__init__(term)
        self.step, self.term, self.value = step, term, value


class Ledger:
    """Collects the terms of each step; its user reads them every `interval` steps.

    Reading a value makes the processor wait for an accelerator, so there it happens seldom; the step that
    went wrong is named all the same.

    Args:
        interval: steps between two looks at the values.
        over_processes: the mean over processes of what one of them has; None where there is one.
    """

    def __init__(self, *, interval: int, over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        self.interval = interval
        self._over_processes = over_processes
        self._names: tuple[str, ...] = ()
        self._weights: list[float] = []
        self._waiting: list[tuple[int, Tensor]] = []
        self._sums = torch.zeros(0, dtype=torch.float64)
        self._count = 0
        self.last_loss: float | None = None

    @property
    def due(self) -> bool:
        """So many steps wait that it is time to look."""
        return len(self._waiting) >= self.interval

    def add(self, terms: Mapping[str, Term], *, step: int) -> None:
        """Note the terms of one step.

        Args:
            terms: by name; the same names in every step of an epoch.
            step: 0-based, over the whole training.
        """
        self._names = tuple(terms)
        self._weights = [term.weight for term in terms.values()]
        self._waiting.append((step, torch.stack([term.value.detach().float() for term in terms.values()])))

    def read(self) -> None:
        """Look at every step since the last look.

        Raises:
            Diverged: a term of one of them is NaN or infinite.
        """
        if not self._waiting:
            return
        stacked = torch.stack([value for _, value in self._waiting])
        values = (stacked if self._over_processes is None else self._over_processes(stacked)).cpu()
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            row, column = (int(index) for index in (~finite).nonzero()[0])
            raise Diverged(self._waiting[row][0], self._names[column], values[row, column].item())
        doubles = values.double()
        self._sums = doubles.sum(0) if self._count == 0 else self._sums + doubles.sum(0)
        self._count += len(values)
        self.last_loss = float((doubles[-1] * torch.tensor(self._weights, dtype=torch.float64)).sum())
        self._waiting.clear()

    def state(self) -> dict[str, Any]:
        """The sums of an epoch that is not over, for `load`; look at all steps first."""
        return {"names": list(self._names), "weights": self._weights, "sums": self._sums, "count": self._count}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums of `state`."""
        self._names, self._weights = tuple(state["names"]), list(state["weights"])
        self._sums, self._count = state["sums"].clone(), int(state["count"])

    def close_epoch(self) -> dict[str, TermMean]:
        """The means since the last call, and start again."""
        means = (self._sums / max(1, self._count)).tolist()
        self._count = 0
        return {
            name: TermMean(raw=mean, weighted=mean * weight)
            for name, mean, weight in zip(self._names, means, self._weights, strict=True)
        }
