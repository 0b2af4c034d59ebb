"""The values that go into and come out of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from edgekd._ledger import TermMean
from edgekd._sampling import ALL, Share
from edgekd._step_clock import StepProfile
from edgekd.errors import TrainingDiverged
from edgekd.methods._base import Term
from edgekd.spec import Frozen

__all__ = [
    "BatchSource",
    "CompileTrial",
    "EpochRecord",
    "FitResult",
    "Hooks",
    "RawBatch",
    "Tick",
    "check_weights",
    "set_training",
]


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

    @property
    def total(self) -> int:
        """Rows of the whole batch, over all processes."""
        ...


class BatchSource(Protocol):
    """Training batches by epoch: the same epoch gives the same batches, whatever was asked before."""

    def __len__(self) -> int:
        """Steps of one epoch."""
        ...

    def epoch(self, epoch: int, /, *, start: int = 0, share: Share = ALL) -> Iterator[RawBatch]:
        """The batches of one epoch (0-based), from number `start` to the last; of each, this process's rows."""
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
        profile: where the steps' time went, of those that this process made since it began; None if none.
    """

    epoch: int
    terms: dict[str, TermMean]
    loss: float
    lr: float
    val: float | None
    seconds: float
    profile: StepProfile | None = None


class CompileTrial(Frozen):
    """What a compiled step gains over a plain one, timed before training on this machine.

    Args:
        plain_ms: one step, forward and backward, median.
        compiled_ms: the same, compiled; None where compiling failed.
        compile_s: seconds until the first compiled steps were through.
        kept: training goes on compiled: it is faster, and pays for the compiling within this training.
        reason: why, or what failed.
    """

    plain_ms: float
    compiled_ms: float | None
    compile_s: float
    kept: bool
    reason: str


class FitResult(Frozen):
    """What training did. The network itself is the method's, and holds the last epoch's weights.

    Args:
        history: one record an epoch, those before a resume included.
        steps: optimizer steps of the whole training.
        averaged: the weights are the moving average at the last epoch's end.
        resumed_at: the epoch this call started with; 0 for a run from the start.
        resumed_step: the step this call started with, over all epochs; 0 for a run from the start.
        best_epoch: where `val` was highest; the weights are of that epoch if the settings say keep = "best".
        kept: "last" or "best": which epoch's weights these are.
        compiled: what torch.compile was found to gain; None where it was not asked for.
        profile: where the time of a step went in this call; None if it made no step.
    """

    history: list[EpochRecord]
    steps: int
    averaged: bool
    resumed_at: int
    resumed_step: int = 0
    best_epoch: int | None
    kept: Literal["last", "best"] = "last"
    compiled: CompileTrial | None = None
    profile: StepProfile | None = None


@dataclass(frozen=True)
class Tick:
    """Progress after one step: `step` of `steps` are done (over all epochs); `loss` is the latest known.

    Args:
        step, steps, epoch, epochs: 1-based step, 0-based epoch.
        loss: the latest known weighted sum.
        lr: of this step.
        images_per_s: over all processes, smoothed over the last steps; None at the first.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float | None
    lr: float = 0.0
    images_per_s: float | None = None


def check_weights(module: nn.Module, *, epoch: int, step: int, told: str) -> None:
    """Refuse weights that are no numbers: the last update of an epoch is not followed by a loss that would show it.

    Raises:
        TrainingDiverged: names the weight.
    """
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingDiverged(
                f"Training diverged at step {step} (epoch {epoch + 1}): weight '{name}' is not finite. {told} Lower the"
                " learning rate, or set clip_grad_norm."
            )


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
