"""Two answers held against each other: agreement, difference, and whether it is enough.

Reference for the interval: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22,
1927.
"""

from __future__ import annotations

from math import floor

import numpy as np
from numpy.typing import NDArray

from edgekd._agreement_types import PairRow
from edgekd._intervals import wilson_interval
from edgekd.errors import GateFailed, MismatchError

__all__ = ["accuracy", "compared", "judged"]

_NAMED_DISAGREEMENTS = 10


def compared(a: NDArray[np.float64], b: NDArray[np.float64], *, names: tuple[str, str]) -> PairRow:
    """Compare two arrays of logits, both of shape (N, K).

    Raises:
        MismatchError: the shapes differ.
        GateFailed: a logit is NaN or infinite.

    >>> row = compared(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 0.9], [0.1, 0.2]]), names=("a", "b"))
    >>> row.top1_agreement, round(row.max_abs_diff, 3), row.disagreeing
    (0.5, 0.9, [1])
    """
    if a.shape != b.shape:
        raise MismatchError(
            f"{names[0]} and {names[1]} give different outputs: {list(a.shape)} and {list(b.shape)}. Only files of the"
            " same task can be compared."
        )
    for name, logits in zip(names, (a, b), strict=True):
        if not np.isfinite(logits).all():
            raise GateFailed(f"{name}: a logit is NaN or infinite, so that it cannot be compared.")
    same = a.argmax(axis=1) == b.argmax(axis=1)
    difference = np.abs(a - b)
    spread = float(a.max() - a.min())
    agreeing, n = int(same.sum()), len(a)
    return PairRow(
        a=names[0],
        b=names[1],
        n=n,
        agreeing=agreeing,
        top1_agreement=agreeing / n,
        ci95=wilson_interval(agreeing, n),
        max_abs_diff=float(difference.max()),
        max_rel_diff=float(difference.max()) / spread if spread else 0.0,
        mean_abs_diff=float(difference.mean()),
        disagreeing=[int(index) for index in np.flatnonzero(~same)[:_NAMED_DISAGREEMENTS]],
    )


def accuracy(logits: NDArray[np.float64], labels: NDArray[np.int64] | None) -> float | None:
    """Share of samples whose largest logit is the true class's; None without labels."""
    return None if labels is None else float((logits.argmax(axis=1) == labels[: len(logits)]).mean())


def judged(pair: PairRow, reference: str, min_agreement: float | None) -> PairRow:
    """The pair with its verdict, if it is one with the reference and anything was asked."""
    if min_agreement is None or pair.a != reference:
        return pair
    # a share of few samples may allow none, and two logits that tie say nothing about the file
    allowed = max(1, floor((1.0 - min_agreement) * pair.n * (1.0 + 1e-12)))
    return pair.model_copy(update={"passed": pair.n - pair.agreeing <= allowed})
