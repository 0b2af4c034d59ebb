"""Measure a distillation: closeness to the teacher, calibration by one temperature, similarity of layers.

All functions take and return values in memory. What one model does alone (accuracy, NLL, ECE, Brier) and what two do
on the same samples (agreement, paired differences) is in `edgekd.evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import exp, log, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd._ladder import Predictions
from edgekd._quality_model import Calibration, Distillation, Fidelity, Floor, LayerSimilarity, StudentQuality
from edgekd.errors import MismatchError
from edgekd.evaluate import agreement, brier, ece, nll

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Calibration",
    "CkaSums",
    "Distillation",
    "Fidelity",
    "Floor",
    "LayerSimilarity",
    "StudentQuality",
    "agreement_floor",
    "calibration",
    "fitted_temperature",
    "gram",
    "hsic",
    "linear_cka",
    "mean_kl",
    "scaled",
]

_COLDEST, _HOTTEST = 0.05, 20.0
_LEAST_SAMPLES = 4  # of a batch: the unbiased estimate of HSIC divides by n - 3
_COLUMNS = 8192  # features that are turned to float at once: maps of a large network would not fit twice


def mean_kl(teacher_logits: NDArray[Any], student_logits: NDArray[Any]) -> float:
    """Mean over samples of KL(p_teacher || p_student) at temperature 1, in nats, >= 0.

    Unlike `evaluate.kl_to` it needs no labels, and a class that the teacher gives no probability adds nothing.

    Args:
        teacher_logits: shape (N, K); -inf for a class without probability.
        student_logits: same shape, finite.

    Raises:
        MismatchError: the shapes differ.

    Reference: Kullback, Leibler, "On Information and Sufficiency", 1951; on training and held-out data as a measure of
    distillation: Stanton, Izmailov, Kirichenko, Alemi, Wilson, "Does Knowledge Distillation Really Work?", 2021,
    arXiv:2106.05945, section 3.

    >>> round(mean_kl(np.log([[0.5, 0.5]]), np.log([[0.8, 0.2]])), 4)  # 0.5 ln(0.5 / 0.8) + 0.5 ln(0.5 / 0.2)
    0.2231
    """
    if teacher_logits.shape != student_logits.shape or teacher_logits.ndim != 2:
        raise MismatchError(
            f"Teacher and student logits must be two equal (N, K) arrays, got {teacher_logits.shape} and"
            f" {student_logits.shape}."
        )
    from scipy.special import log_softmax  # not before a student is there to be looked at

    log_t = log_softmax(teacher_logits.astype(np.float64), axis=1)
    log_s = log_softmax(student_logits.astype(np.float64), axis=1)
    with np.errstate(invalid="ignore"):  # 0 * -inf, which is 0 here
        terms = np.where(np.isneginf(log_t), 0.0, np.exp(log_t) * (log_t - log_s))
    # rounding can leave a sum of about -1e-17 for equal inputs
    return max(0.0, float(terms.sum(axis=1).mean()))


def fitted_temperature(predictions: Predictions) -> float | None:
    """The temperature that makes a model's probabilities fit the labels best: logits / T with the least NLL.

    Above 1 the model was too sure of itself. Classes stay what they are, so accuracy does not move.

    Args:
        predictions: on samples that neither training nor the test split has seen.

    Returns:
        in [0.05, 20]; None where the least NLL is not inside. That is so when every sample is right (the surer, the
        better) and when the logits say nothing about the labels.

    Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599,
    section 4.2.
    """
    logits = predictions.logits.astype(np.float64)
    true = logits[np.arange(predictions.n), predictions.labels]

    from scipy.optimize import brentq
    from scipy.special import log_softmax

    def slope(log_temperature: float) -> float:
        """Derivative of the mean NLL by 1 / T, which grows with 1 / T: the NLL is convex in it."""
        probabilities = np.exp(log_softmax(logits / exp(log_temperature), axis=1))
        return float(((probabilities * logits).sum(axis=1) - true).mean())

    if not slope(log(_COLDEST)) > 0 > slope(log(_HOTTEST)):
        return None
    return float(exp(brentq(slope, log(_COLDEST), log(_HOTTEST), xtol=1e-6)))


def scaled(predictions: Predictions, temperature: float) -> Predictions:
    """The same predictions with logits divided by a temperature > 0."""
    return Predictions(predictions.logits / np.float32(temperature), predictions.labels)


def calibration(val: Predictions, test: Predictions) -> Calibration:
    """Calibration on the test split, as it is and after a temperature that was fitted on the validation split."""
    temperature = fitted_temperature(val)
    before = Calibration(temperature=temperature, n_val=val.n, nll=nll(test), ece=ece(test), brier=brier(test))
    if temperature is None:
        return before
    after = scaled(test, temperature)
    return before.model_copy(update={"nll_scaled": nll(after), "ece_scaled": ece(after), "brier_scaled": brier(after)})


def agreement_floor(alone: Mapping[str, Predictions], distilled: Mapping[str, Predictions]) -> Floor | None:
    """Agreement of two students that did not share a teacher: what is there without any distillation.

    Two students alone with different seeds if there are two; else a distilled student and the one alone.

    Args:
        alone: test predictions of students that learned alone, by name.
        distilled: of distilled ones.

    Returns:
        None if nobody learned alone.
    """
    if not alone or len(alone) + len(distilled) < 2:
        return None
    (a, first), (b, second) = (list(alone.items()) + list(distilled.items()))[:2]
    if len(alone) == 1:
        (a, first), (b, second) = (b, second), (a, first)
    same = agreement(first, second)
    return Floor(a=a, b=b, agreement=same.value, ci95=same.ci95)


def gram(features: NDArray[Any]) -> NDArray[np.float64]:
    """Inner products of the samples' features, shape (B, B); the batch's mean is taken off first.

    The mean makes no difference to `hsic`, but it would cost the digits that the small differences need.

    Args:
        features: batch first, any shape after that.
    """
    flat = features.reshape(len(features), -1)
    total = np.zeros((len(flat), len(flat)))
    for start in range(0, flat.shape[1], _COLUMNS):
        part = flat[:, start : start + _COLUMNS].astype(np.float32)
        part -= part.mean(axis=0, dtype=np.float64).astype(np.float32)
        total += part @ part.T
    return total


def hsic(k: NDArray[np.float64], ell: NDArray[np.float64]) -> float:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion of two kernels on the same n samples.

    Args:
        k: Gram matrix of the first, shape (n, n), n >= 4.
        ell: of the second, same shape.

    Raises:
        MismatchError: the shapes differ, or there are fewer than 4 samples.

    Reference: Song, Smola, Gretton, Bedo, Borgwardt, "Feature Selection via Dependence Maximization", JMLR 13, 2012,
    equation 5; as HSIC_1 in Nguyen, Raghu, Kornblith, "Do Wide and Deep Networks Learn the Same Things?", 2020,
    arXiv:2010.15327, equation 3.
    """
    n = len(k)
    if k.shape != ell.shape or k.shape != (n, n) or n < _LEAST_SAMPLES:
        raise MismatchError(f"HSIC needs two equal (n, n) matrices with n >= 4, got {k.shape} and {ell.shape}.")
    # diagonals are left out of every sum: a sample with itself would bias the estimate
    k_rows, ell_rows = k.sum(axis=1) - k.diagonal(), ell.sum(axis=1) - ell.diagonal()
    trace = (k * ell).sum() - (k.diagonal() * ell.diagonal()).sum()
    totals = k_rows.sum() * ell_rows.sum() / ((n - 1) * (n - 2))
    return float((trace + totals - 2 * (k_rows @ ell_rows) / (n - 2)) / (n * (n - 3)))


@dataclass
class CkaSums:
    """Linear CKA of two sets of features, from Gram matrices of one minibatch after another.

    The ratio is taken of the sums and not averaged over batches: each sum is unbiased, whatever the batch size.

    Reference: Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", 2019,
    arXiv:1905.00414, equation 4; by minibatches: Nguyen et al., 2020, arXiv:2010.15327, equation 2.
    """

    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def add(self, student: NDArray[np.float64], teacher: NDArray[np.float64]) -> None:
        """Count in one batch; batches should be of one size, at least 4.

        Args:
            student, teacher: `gram` of the two on the same samples, both (B, B).
        """
        for index, (one, other) in enumerate(((student, teacher), (student, student), (teacher, teacher))):
            self._sums[index] += hsic(one, other)

    @property
    def value(self) -> float | None:
        """CKA so far; None without a batch, or where one side is the same for every sample."""
        cross, student, teacher = self._sums
        return cross / sqrt(student * teacher) if student > 0 and teacher > 0 else None


def linear_cka(batches: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> float | None:
    """Similarity of what two layers make of the same samples, whatever their widths; see `CkaSums`.

    Equal up to rotation and scale is 1, unrelated is about 0.

    Args:
        batches: features of the one and of the other, batch first, at least 4 samples each.
    """
    sums = CkaSums()
    for student, teacher in batches:
        sums.add(gram(student), gram(teacher))
    return sums.value
