"""Evaluate models on the same samples: accuracy, fidelity to the teacher, paired differences, parity.

Every proportion comes with a 95 % interval, and two models are compared on the samples they share, never by
reading two separate intervals. All functions take and return values in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from math import log10
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import _group
from edgekd._intervals import exact_mcnemar_p, newcombe_interval, wilson_interval
from edgekd._ladder import Estimate, McNemar, Paired, Parity, Predictions, Rung
from edgekd.errors import DataError, GateFailed, MismatchError
from edgekd.spec import Runner

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = [
    "Estimate",
    "McNemar",
    "Paired",
    "Parity",
    "Predictions",
    "Rung",
    "accuracy",
    "agreement",
    "brier",
    "ece",
    "kl_to",
    "mcnemar",
    "nll",
    "paired",
    "parity",
    "predict",
    "predict_runner",
    "predict_shared",
    "rung",
]


Batches = Iterable[tuple["torch.Tensor", "torch.Tensor", Any]]


def predict(forward: Callable[[torch.Tensor], torch.Tensor], batches: Batches) -> Predictions:
    """Run a torch function over (inputs, labels, ids) batches, without gradients.

    Args:
        forward: (B, C, H, W) to logits (B, K); put a module into its evaluation mode first.
        batches: inputs on the device where `forward` computes.

    Raises:
        DataError, MismatchError, GateFailed: see `Predictions`.
    """
    return _joined(*_computed(forward, batches))


def predict_shared(
    forward: Callable[[torch.Tensor], torch.Tensor],
    samples: int,
    batches: Callable[[torch.Tensor], Batches],
    *,
    batch_size: int = 256,
) -> Predictions:
    """The same over all samples of a split, each of several processes computing its part; all get the whole.

    Batch i is computed by process i % count, whole: so the logits are, bit for bit, those of one process. Every process
    calls it; the network is the same everywhere.

    Args:
        forward: see `predict`.
        samples: size of the split.
        batches: gives (inputs, labels, ids) batches of `batch_size` for indices in the split, int64, in their order.
        batch_size: samples in a batch; the last one has the rest.

    Raises:
        DataError, MismatchError, GateFailed: see `Predictions`.
    """
    import torch

    own = torch.split(torch.arange(samples), batch_size)[_group.index() :: _group.count()]
    parts = _group.gather(_computed(forward, batches(torch.cat(own)) if own else ()))
    logits, labels = (_in_turn([part[side] for part in parts]) for side in (0, 1))
    return _joined(logits, labels)


def _computed(forward: Callable[[torch.Tensor], torch.Tensor], batches: Batches) -> tuple[list[Any], list[Any]]:
    """Logits and labels of every batch."""
    import torch

    logits, labels = [], []
    # no_grad, not inference_mode: exported programs may update views in place, which inference tensors refuse
    with torch.no_grad():
        for inputs, truth, _ in batches:
            logits.append(forward(inputs).detach().float().cpu().numpy())
            labels.append(truth.cpu().numpy())
    return logits, labels


def _in_turn(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """The first of every part, the second of every part, and so on; later parts may lack their last one."""
    turns = itertools.zip_longest(*parts)
    return [one for turn in turns for one in turn if one is not None]


def predict_runner(runner: Runner, batches: Batches) -> Predictions:
    """Run an open Runner over (inputs, labels, ids) batches; its first output is read as logits.

    A runner with a fixed batch size is fed pieces of that size, the last one padded by repeating a sample.

    Raises:
        MismatchError: the runner wants more than one input.
        DataError, GateFailed: see `Predictions`.
    """
    if len(runner.inputs) != 1:
        names = ", ".join(spec.name for spec in runner.inputs)
        raise MismatchError(f"Only models with one input can be evaluated, this one has {len(runner.inputs)}: {names}.")
    dtype = np.dtype(runner.inputs[0].dtype)
    fixed = runner.inputs[0].shape[0]
    logits, labels = [], []
    for inputs, truth, _ in batches:
        array = inputs.cpu().numpy().astype(dtype)
        size = fixed if isinstance(fixed, int) else max(1, len(array))
        logits += [_run_piece(runner, array[start : start + size], size) for start in range(0, len(array), size)]
        labels.append(truth.cpu().numpy())
    return _joined(logits, labels)


def accuracy(predictions: Predictions) -> Estimate:
    """Share of samples whose predicted class is the true one."""
    return _estimate(predictions.classes == predictions.labels)


def agreement(a: Predictions, b: Predictions) -> Estimate:
    """Share of samples on which the two predict the same class, right or wrong.

    Reference: Stanton, Izmailov, Kirichenko, Alemi, Wilson, "Does Knowledge Distillation Really Work?", 2021,
    arXiv:2106.05945, section 3.
    """
    _require_same_samples(a, b)
    return _estimate(a.classes == b.classes)


def kl_to(teacher: Predictions, student: Predictions) -> float:
    """Mean over samples of KL(p_teacher || p_student) at temperature 1, in nats, >= 0.

    Reference: Kullback, Leibler, "On Information and Sufficiency", 1951; as a fidelity measure: Stanton et al.,
    2021, arXiv:2106.05945, section 3.
    """
    _require_same_samples(teacher, student)
    if teacher.logits.shape != student.logits.shape:
        raise MismatchError(
            f"Teacher and student disagree on classes: {teacher.logits.shape[1]} and {student.logits.shape[1]}."
        )
    log_t, log_s = _log_softmax(teacher.logits), _log_softmax(student.logits)
    # rounding can leave a sum of about -1e-17 for equal inputs
    return max(0.0, float((np.exp(log_t) * (log_t - log_s)).sum(axis=1).mean()))


def nll(predictions: Predictions) -> float:
    """Mean negative log-likelihood of the true class, in nats."""
    rows = np.arange(predictions.n)
    return float(-_log_softmax(predictions.logits)[rows, predictions.labels].mean())


def brier(predictions: Predictions) -> float:
    """Mean squared distance between the probabilities and the one-hot truth, in [0, 2].

    Reference: Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950, equation 2.
    """
    error = np.exp(_log_softmax(predictions.logits))
    error[np.arange(predictions.n), predictions.labels] -= 1.0
    return float((error**2).sum(axis=1).mean())


def ece(predictions: Predictions, *, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins.

    Returns:
        a fraction; 0 is calibrated.

    Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017,
    arXiv:1706.04599, equation 3.
    """
    confidence = np.exp(_log_softmax(predictions.logits)).max(axis=1)
    right = predictions.classes == predictions.labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (low, high]
    gap = np.bincount(index, weights=right, minlength=bins) - np.bincount(index, weights=confidence, minlength=bins)
    return float(np.abs(gap).sum() / predictions.n)


def mcnemar(a: NDArray[np.int64], b: NDArray[np.int64], labels: NDArray[np.int64]) -> McNemar:
    """Compare two classifiers on the same samples by those that only one of them gets right.

    Args:
        a, b: predicted classes, shape (N,).
        labels: true classes, shape (N,).

    Reference: see `edgekd._intervals`: exact binomial McNemar test, and Newcombe's 1998 method 10 interval.
    """
    if not a.shape == b.shape == labels.shape or a.ndim != 1 or not len(a):
        raise MismatchError(
            f"mcnemar needs three equal, non-empty (N,) arrays, got {a.shape}, {b.shape}, {labels.shape}."
        )
    right_a, right_b = a == labels, b == labels
    a_only, b_only = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    both = int((right_a & right_b).sum())
    n = len(labels)
    return McNemar(
        a_only=a_only,
        b_only=b_only,
        p_value=exact_mcnemar_p(a_only, b_only),
        difference=(b_only - a_only) / n,
        ci95=newcombe_interval(both, a_only, b_only, n - both - a_only - b_only),
        n=n,
    )


def paired(a: tuple[str, Predictions], b: tuple[str, Predictions]) -> Paired:
    """Compare two named rungs; the difference is b's accuracy minus a's.

    Raises:
        MismatchError: they were not evaluated on the same samples.
    """
    _require_same_samples(a[1], b[1])
    test = mcnemar(a[1].classes, b[1].classes, a[1].labels)
    return Paired(
        a=a[0],
        b=b[0],
        difference=test.difference,
        ci95=test.ci95,
        p_value=test.p_value,
        a_only=test.a_only,
        b_only=test.b_only,
        n=test.n,
    )


def parity(a_logits: NDArray[np.float32], b_logits: NDArray[np.float32]) -> Parity:
    """Measure how far `b_logits` is from the reference `a_logits`, both (N, K).

    Raises:
        MismatchError: the shapes differ, or there are no samples.
        GateFailed: a logit is NaN or infinite, so that the two cannot be compared.
    """
    if a_logits.shape != b_logits.shape or a_logits.ndim != 2 or not len(a_logits):
        raise MismatchError(f"parity needs two equal, non-empty (N, K) arrays, got {a_logits.shape}, {b_logits.shape}.")
    a, b = a_logits.astype(np.float64), b_logits.astype(np.float64)
    broken = int((~(np.isfinite(a) & np.isfinite(b))).any(axis=1).sum())
    if broken:
        raise GateFailed(f"Parity cannot be measured: {broken} of {len(a)} samples have NaN or infinite logits.")
    error = np.abs(a - b)
    signal, noise = float((a**2).sum()), float((error**2).sum())
    return Parity(
        top1_agreement=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        n=len(a),
        max_abs_error=float(error.max()),
        mean_abs_error=float(error.mean()),
        sqnr_db=10 * log10(signal / noise) if signal > 0 and noise > 0 else None,
    )


def rung(
    name: str,
    predictions: Predictions,
    *,
    teacher: Predictions | None = None,
    target: str | None = None,
    size_bytes: int | None = None,
    parameters: int | None = None,
    seeds: Sequence[float] = (),
) -> Rung:
    """Everything the ladder says about one model.

    Args:
        name: the rung's name.
        predictions: of this model.
        teacher: the teacher's on the same samples; None leaves agreement and KL out.
        target: what the model is shipped for.
        size_bytes: of its file.
        parameters: number of weights.
        seeds: accuracy of each repeat, fractions, this one included.
    """
    own = accuracy(predictions)
    same = agreement(teacher, predictions) if teacher is not None else None
    return Rung(
        rung=name,
        target=target,
        value=own.value,
        ci95=own.ci95,
        n=own.n,
        agreement=same.value if same else None,
        agreement_ci95=same.ci95 if same else None,
        kl=kl_to(teacher, predictions) if teacher is not None else None,
        nll=nll(predictions),
        ece=ece(predictions),
        brier=brier(predictions),
        size_bytes=size_bytes,
        parameters=parameters,
        seeds=list(seeds),
        mean=mean(seeds) if seeds else None,
        sd=stdev(seeds) if len(seeds) > 1 else None,
    )


def _joined(logits: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]]) -> Predictions:
    if not labels:
        raise DataError("There are no samples to evaluate on. Give the split at least one sample.")
    return Predictions(np.concatenate(logits).astype(np.float32), np.concatenate(labels).astype(np.int64))


def _run_piece(runner: Runner, piece: NDArray[Any], size: int) -> NDArray[Any]:
    padding = np.repeat(piece[-1:], size - len(piece), axis=0)
    feeds = {runner.inputs[0].name: np.ascontiguousarray(np.concatenate([piece, padding]))}
    return runner.run(feeds)[runner.outputs[0].name][: len(piece)]


def _estimate(hits: NDArray[np.bool_]) -> Estimate:
    count = int(hits.sum())
    return Estimate(count / len(hits), wilson_interval(count, len(hits)), len(hits))


def _require_same_samples(a: Predictions, b: Predictions) -> None:
    if not np.array_equal(a.labels, b.labels):
        raise MismatchError(
            f"The two models were not evaluated on the same samples ({a.n} and {b.n}, with different labels)."
            " Evaluate both on one split, in one order."
        )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """In float64: the tail of a confident int8 model underflows in float32."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
