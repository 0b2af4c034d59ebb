"""From what a teacher answers (probabilities, its best k classes, or a label) to logits, checked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgekd.errors import MismatchError

__all__ = [
    "check_finite",
    "check_labels",
    "check_probabilities",
    "check_top_k",
    "logits_from_labels",
    "logits_from_probabilities",
    "logits_from_top_k",
]

_LEAST = 1e-12  # for a probability of 0: about where the logits of a confident float32 network end
_SLACK = 1e-2  # how far rounded probabilities may be from a sum of 1


def logits_from_probabilities(probabilities: Tensor) -> Tensor:
    """Their logarithm, which is a set of logits; 0 counts as 1e-12.

    Args:
        probabilities: shape (B, K).
    """
    return probabilities.float().clamp_min(_LEAST).log()


def logits_from_top_k(indices: Tensor, values: Tensor, classes: int) -> Tensor:
    """Log-probabilities of all classes from those of a few.

    What the k classes leave of 1 is spread evenly over the others, so the given probabilities stay as they are. To
    scale them up to 1 instead would make the teacher surer than it is.

    Args:
        indices: classes, shape (B, k).
        values: their probabilities, shape (B, k).
        classes: K.

    Returns:
        shape (B, K).
    """
    values = values.float()
    k = values.shape[1]
    rest = (1 - values.sum(dim=1, keepdim=True)).clamp_min(0) / max(1, classes - k)
    spread = rest.expand(-1, classes).clone()
    return logits_from_probabilities(spread.scatter(1, indices.long(), values))


def logits_from_labels(labels: Tensor, classes: int, confidence: float) -> Tensor:
    """Log-probabilities that give the label `confidence` and the other classes the rest evenly.

    Args:
        labels: shape (B,).
        classes: K.
        confidence: in (0, 1).

    Returns:
        shape (B, K).
    """
    logits = torch.full((len(labels), classes), math.log((1 - confidence) / max(1, classes - 1)), device=labels.device)
    return logits.scatter(1, labels.long().unsqueeze(1), math.log(confidence))


def check_finite(values: Tensor, where: str) -> None:
    """Refuse answers that are no numbers.

    Raises:
        MismatchError: not floats, NaN or infinite; tells how many samples and the first.
    """
    if not values.is_floating_point():
        raise MismatchError(f"{where} must be floats, got {values.dtype}.".replace("torch.", ""))
    broken = (~torch.isfinite(values)).flatten(1).any(dim=1).nonzero().flatten()
    if len(broken):
        raise MismatchError(
            f"{where}: NaN or infinity for {len(broken)} of {len(values)} samples (first: row {int(broken[0])})."
        )


def check_probabilities(values: Tensor, where: str) -> None:
    """Refuse rows that are no probabilities.

    Raises:
        MismatchError: negative, or a row whose sum is further than 0.01 from 1.
    """
    check_finite(values, where)
    sums = values.double().sum(dim=1)
    if bool((values < 0).any()) or bool(((sums - 1).abs() > _SLACK).any()):
        raise MismatchError(
            f"{where}: rows must be probabilities that sum to 1, got values from {float(values.min()):.4g} and sums"
            f" from {float(sums.min()):.4g} to {float(sums.max()):.4g}. If they are logits, say so."
        )


def check_top_k(indices: Tensor, values: Tensor, classes: int, where: str) -> None:
    """Refuse what is not (B, k) different classes with the probability of each.

    Raises:
        MismatchError: says what is wrong with which values.
    """
    if indices.dim() != 2 or indices.shape != values.shape or not 0 < indices.shape[1] <= classes:
        raise MismatchError(
            f"{where}: indices and values must both be (B, k) with k from 1 to {classes}, got {tuple(indices.shape)}"
            f" and {tuple(values.shape)}."
        )
    _check_class_numbers(indices, classes, where)
    ordered = indices.sort(dim=1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise MismatchError(f"{where}: a class stands twice in one row of indices.")
    check_finite(values, where)
    low, most = float(values.min()), float(values.double().sum(dim=1).max())
    if low < 0 or most > 1 + _SLACK:
        raise MismatchError(
            f"{where}: the values of the best {values.shape[1]} classes must be probabilities whose sum is at most 1,"
            f" got values from {low:.4g} and a sum of {most:.4g}. For their logarithms set values ="
            " 'log_probabilities'. Logits of a few classes do not tell what the others have: take the softmax over"
            " all classes first."
        )


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Refuse what is not one class per sample.

    Raises:
        MismatchError: another shape, type or class.
    """
    if labels.dim() != 1:
        raise MismatchError(f"{where}: labels must be (B,), got {tuple(labels.shape)}.")
    _check_class_numbers(labels, classes, where)


def _check_class_numbers(numbers: Tensor, classes: int, where: str) -> None:
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise MismatchError(f"{where}: classes must be integers, got {numbers.dtype}.".replace("torch.", ""))
    if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= classes):
        raise MismatchError(
            f"{where}: classes run from {int(numbers.min())} to {int(numbers.max())}, the data has {classes} (0 to"
            f" {classes - 1})."
        )
