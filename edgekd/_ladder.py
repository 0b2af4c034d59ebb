"""The records of evaluation: predictions of one model, rungs of the ladder, comparisons of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import ConfigDict, Field

from edgekd.errors import DataError, GateFailed, MismatchError
from edgekd.spec import Frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Estimate", "Interval95", "McNemar", "Paired", "Parity", "Predictions", "Rung"]


@dataclass(frozen=True)
class Predictions:
    """What a model said about every sample of a split.

    Args:
        logits: shape (N, K), float32, finite.
        labels: shape (N,), int64, the true class of each sample.

    Raises:
        DataError: no samples.
        MismatchError: the shapes do not fit, or a label is not one of the K classes.
        GateFailed: a logit is NaN or infinite, so that no class can be read from it.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.logits.ndim != 2 or self.labels.shape != self.logits.shape[:1]:
            raise MismatchError(
                f"Logits must be (N, K) and labels (N,), got {self.logits.shape} and {self.labels.shape}."
                " The model's first output must be one row of class scores per sample."
            )
        if not len(self.labels):
            raise DataError("There are no samples to evaluate on. Give the split at least one sample.")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.logits.shape[1]:
            raise MismatchError(
                f"Labels run from {low} to {high}, the model gives {self.logits.shape[1]} classes. Evaluate on the"
                " data set that the model was trained for."
            )
        broken = np.flatnonzero(~np.isfinite(self.logits).all(axis=1))
        if len(broken):
            raise GateFailed(
                f"The model gives NaN or infinite logits for {len(broken)} of {len(self.labels)} samples (first:"
                f" sample {broken[0]}). Look at the stage that made it: a diverged training or an overflow in float16."
            )

    @property
    def n(self) -> int:
        """How many samples."""
        return len(self.labels)

    @property
    def classes(self) -> NDArray[np.int64]:
        """The predicted class of each sample, shape (N,); the lower index wins a tie."""
        classes: NDArray[np.int64] = self.logits.argmax(axis=1).astype(np.int64)
        return classes


@dataclass(frozen=True)
class Estimate:
    """A proportion of n samples, a fraction, with its 95 % Wilson interval."""

    value: float
    ci95: tuple[float, float]
    n: int


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same n samples.

    Args:
        a_only: samples that only the first got right.
        b_only: samples that only the second got right.
        p_value: exact two-sided McNemar test of "neither is better".
        difference: accuracy of the second minus the first, a fraction.
        ci95: Newcombe's interval (1998, method 10) of that difference. It and the test are different methods,
            so at the edge one may just exclude what the other just allows.
        n: samples.
    """

    a_only: int
    b_only: int
    p_value: float
    difference: float
    ci95: tuple[float, float]
    n: int


# (low, high); a list is as good, since JSON has no tuples
Interval95 = Annotated[tuple[float, float], Field(strict=False)]


class _Finite(Frozen):
    """A record whose numbers are numbers: JSON has no NaN, and a report must not hide one as null."""

    model_config = ConfigDict(allow_inf_nan=False)


class Paired(_Finite):
    """Rung b against rung a on the same samples; fields as in `McNemar`."""

    a: str
    b: str
    difference: float
    ci95: Interval95
    p_value: float
    a_only: int = Field(ge=0)
    b_only: int = Field(ge=0)
    n: int = Field(ge=1)


class Parity(_Finite):
    """How far one program's logits are from another's on the same samples.

    Args:
        top1_agreement: share of samples with the same predicted class, a fraction.
        n: samples.
        max_abs_error: largest difference of two logits.
        mean_abs_error: mean difference of two logits.
        sqnr_db: signal power over error power in decibels; None when the two are equal.
    """

    top1_agreement: float
    n: int
    max_abs_error: float
    mean_abs_error: float
    sqnr_db: float | None


class Rung(_Finite):
    """One step of the accuracy ladder.

    Args:
        rung: its name ("teacher", "student", "int8", "onnx_int8", ...).
        target: what it is shipped for; None for a training stage.
        metric: what `value` is.
        value: the metric, a fraction.
        ci95: sampling interval of `value` over the evaluated samples.
        n: samples.
        agreement: share of samples with the teacher's predicted class, a fraction.
        agreement_ci95: its interval.
        kl: mean KL(teacher || this), nats.
        nll: mean negative log-likelihood, nats.
        ece: expected calibration error over 15 bins, a fraction.
        brier: mean squared distance of the probabilities from the truth, in [0, 2].
        size_bytes: size of the file on disk.
        parameters: number of weights.
        seeds: the metric of each repeat with another seed.
        mean, sd: over `seeds`; sd is None for fewer than two.
    """

    rung: str
    target: str | None = None
    metric: str = "top1_accuracy"
    value: float
    ci95: Interval95
    n: int
    agreement: float | None = None
    agreement_ci95: Interval95 | None = None
    kl: float | None = None
    nll: float | None = None
    ece: float | None = None
    brier: float | None = None
    size_bytes: int | None = None
    parameters: int | None = None
    seeds: list[float] = Field(default_factory=list)
    mean: float | None = None
    sd: float | None = None
