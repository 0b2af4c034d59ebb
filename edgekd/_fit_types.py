"""The values that go into and come out of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from edgekd._ledger import TermMean
from edgekd.methods._base import Term
from edgekd.spec import Frozen

__all__ = ["BatchSource", "EpochRecord", "FitResult", "Hooks", "RawBatch", "Tick", "set_training"]


class RawBatch(Protocol):
    """What a batch source gives: augmented and normalised inputs, label probabilities, sample indices."""

    @property
    def inputs(self) -> Tensor:
        """Shape (B, C, H, W), float32."""
        ...

    @property
    def labels(self) -> Tensor:
        """Probabilities, shape (B, K), float32."""
        ...

    @property
    def ids(self) -> Tensor:
        """Indices in the training split, shape (B,)."""
        ...


class BatchSource(Protocol):
    """Training batches by epoch: the same epoch gives the same batches, whatever was asked before."""

    def __len__(self) -> int:
        """Steps of one epoch."""
        ...

    def epoch(self, epoch: int, /) -> Iterator[RawBatch]:
        """The batches of one epoch (0-based), len() of them."""
        ...


class EpochRecord(Frozen):
    """What one epoch did.

    Args:
        epoch: 0-based.
        terms: each loss term, averaged over the epoch's steps.
        loss: the weighted sum.
        lr: learning rate of the last step.
        val: the metric of `evaluate`, if one was given.
        seconds: training and evaluation.
    """

    epoch: int
    terms: dict[str, TermMean]
    loss: float
    lr: float
    val: float | None
    seconds: float


class FitResult(Frozen):
    """What training did. The network itself is the method's, and holds the last epoch's weights.

    Args:
        history: one record an epoch, those before a resume included.
        steps: optimizer steps of the whole training.
        averaged: the weights are the moving average at the last epoch's end.
        resumed_at: the epoch this call started with; 0 for a run from the start.
        best_epoch: where `val` was highest, for information: the weights are never picked by it.
    """

    history: list[EpochRecord]
    steps: int
    averaged: bool
    resumed_at: int
    best_epoch: int | None


@dataclass(frozen=True)
class Tick:
    """Progress after one step: `step` of `steps` are done (over all epochs); `loss` is the latest known."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float | None


def set_training(module: nn.Module, training: bool) -> None:
    """Switch an ordinary module between training and evaluation."""
    module.train(training)


@dataclass(frozen=True)
class Hooks:
    """Where a caller takes part in the loop.

    Args:
        on_step: called before every step with the fraction of training done, in [0, 1). After a resume it
            starts late, and after each epoch the student was switched to evaluation and back, so whatever
            it freezes it must freeze again when called.
        on_epoch: called after every epoch, its checkpoint written.
        set_training: switches the student's mode; an exported graph needs one of its own.
        terms: called after every forward for terms beside the method's, of the student's weights alone.
    """

    on_step: Callable[[float], None] = lambda progress: None
    on_epoch: Callable[[EpochRecord], None] = lambda record: None
    set_training: Callable[[nn.Module, bool], None] = set_training
    terms: Callable[[], Mapping[str, Term]] = dict
