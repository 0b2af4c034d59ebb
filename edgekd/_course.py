"""How far a training is: the next step, what the epochs before it gave, and the best of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from edgekd._checkpoint import Best
from edgekd._fit_types import CompileTrial, EpochRecord, FitResult, Tick
from edgekd._step_clock import StepProfile

__all__ = ["Course"]


class Course:
    """The place of a training in its plan; part of its state.

    Args:
        steps_per_epoch: of them.
        epochs: in all.
    """

    def __init__(self, steps_per_epoch: int, epochs: int) -> None:
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs
        self.epoch = self.step = 0
        """The next step: of which epoch, and which of it; both from 0."""
        self.seconds = 0.0
        """What the epoch has taken so far."""
        self.history: list[EpochRecord] = []
        self.best: tuple[Best, Mapping[str, Tensor]] | None = None
        self.compiled: CompileTrial | None = None
        self._resumed = (0, 0)

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.steps_per_epoch * self.epochs

    @property
    def number(self) -> int:
        """The next step, from 0 over the whole training."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def done(self) -> bool:
        """Every step was made."""
        return self.epoch >= self.epochs

    @property
    def epoch_done(self) -> bool:
        """Every step of this epoch was made."""
        return self.step >= self.steps_per_epoch

    def state(self) -> dict[str, Any]:
        """Plain values, for `load`; the best weights are kept apart."""
        return {
            "place": [self.epoch, self.step, self.seconds],
            "history": [record.model_dump(mode="json") for record in self.history],
            "compiled": self.compiled.model_dump(mode="json") if self.compiled else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.epoch, self.step, self.seconds = state["place"]
        self.history = [EpochRecord.model_validate(record) for record in state["history"]]
        self.compiled = CompileTrial.model_validate(state["compiled"]) if state["compiled"] else None
        self._resumed = (self.epoch, self.number)

    def tick(self, loss: float | None, rate: float, images: int) -> Tick:
        """What somebody who follows is told after a step.

        Args:
            loss: the latest known.
            rate: of the step.
            images: of the step, over all processes.
        """
        speed = self.step * images / self.seconds if self.seconds > 0 else None
        return Tick(self.number, self.steps, self.epoch, self.epochs, loss, rate, speed)

    def close_epoch(self, record: EpochRecord) -> bool:
        """Go to the next epoch; True if this one validated better than every one before it."""
        self.history.append(record)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        return record.val is not None and (self.best is None or record.val > self.best[0].value)

    def result(self, *, averaged: bool, kept: Literal["last", "best"], profile: StepProfile | None) -> FitResult:
        """What `fit` gives."""
        rated = [(record.val, -record.epoch) for record in self.history if record.val is not None]
        return FitResult(
            history=self.history,
            steps=self.steps,
            averaged=averaged,
            resumed_at=self._resumed[0],
            resumed_step=self._resumed[1],
            best_epoch=-max(rated)[1] if rated else None,
            kept=kept if rated else "last",
            compiled=self.compiled,
            profile=profile,
        )
