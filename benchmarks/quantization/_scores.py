"""How well an int8 file does what its float file does: agreement, SQNR, KL, accuracy, each with an interval.

Several crops are cut from one photograph, so intervals come from a bootstrap that draws whole photographs. The
interval of agreement and accuracy alone is Wilson's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _runtimes import runner
from numpy.typing import NDArray

from edgekd._intervals import wilson_interval
from edgekd.export import INPUT, OUTPUT

__all__ = ["Judged", "draws_of", "judge", "logits_of", "score", "score_difference"]

_RESAMPLES = 2000
_BATCH = 8


@dataclass(frozen=True)
class Judged:
    """What is summed over images, one row an image.

    Args:
        agrees: 1 where the class is the float file's.
        signal: power of the float file's logits.
        error: power of the difference to them.
        kl: KL(p_float || p_int8), nats.
        right: 1 where the class is the true one; None without labels.
        draws: how often each image counts in each resample, shape (resamples, images).
    """

    agrees: NDArray[np.float64]
    signal: NDArray[np.float64]
    error: NDArray[np.float64]
    kl: NDArray[np.float64]
    right: NDArray[np.float64] | None
    draws: NDArray[np.float32]


def logits_of(path: Path, inputs: NDArray[np.float32], *, runtime: str) -> NDArray[np.float32]:
    """What a file gives for every image, shape (N, K)."""
    with runner(runtime, path) as opened:
        fixed = opened.inputs[0].shape[0]
        size = fixed if isinstance(fixed, int) else _BATCH
        parts = [opened.run({INPUT: inputs[k : k + size]})[OUTPUT] for k in range(0, len(inputs), size)]
    return np.concatenate(parts)


def judge(
    reference: NDArray[np.float32],
    found: NDArray[np.float32],
    *,
    labels: NDArray[np.int64] | None,
    draws: NDArray[np.float32],
) -> Judged:
    """Compare logits, both (N, K), image by image.

    Args:
        reference: the float file's.
        found: the int8 file's.
        labels: true classes, shape (N,).
        draws: from `draws_of`; two files judged with the same ones are paired.
    """
    wanted, got = reference.astype(np.float64), found.astype(np.float64)
    log_wanted, log_got = _log_softmax(wanted), _log_softmax(got)
    return Judged(
        agrees=(wanted.argmax(1) == got.argmax(1)).astype(np.float64),
        signal=(wanted**2).sum(1),
        error=((wanted - got) ** 2).sum(1),
        kl=(np.exp(log_wanted) * (log_wanted - log_got)).sum(1),
        right=None if labels is None else (got.argmax(1) == labels).astype(np.float64),
        draws=draws,
    )


def draws_of(groups: NDArray[np.int64], *, seed: int) -> NDArray[np.float32]:
    """How often each image counts in each resample, shape (resamples, N); photographs are drawn as a whole.

    Args:
        groups: number of the photograph of each image, from 0, shape (N,).
        seed: of the draws.
    """
    count = int(groups.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    drawn_images: NDArray[np.float32] = drawn.astype(np.float32)[:, groups]
    return drawn_images


def score(one: Judged) -> dict[str, Any]:
    """The columns of the table for one file."""
    found = {"agreement": _share(one.agrees), "sqnr_db": _decibels(one), "kl": _mean(one.kl, one.draws)}
    return found if one.right is None else {**found, "accuracy": _share(one.right)}


def score_difference(one: Judged, other: Judged) -> dict[str, Any]:
    """Paired differences, `one` minus `other`, each with its 95 % interval; both judged on the same images."""
    found = {
        "agreement": _mean(one.agrees - other.agrees, one.draws),
        "sqnr_db": _decibels(one, other),
        "kl": _mean(one.kl - other.kl, one.draws),
    }
    if one.right is None or other.right is None:
        return found
    return {**found, "accuracy": _mean(one.right - other.right, one.draws)}


def _share(hits: NDArray[np.float64]) -> dict[str, Any]:
    count, n = int(hits.sum()), len(hits)
    return {"value": count / n, "ci95": list(wilson_interval(count, n)), "n": n}


def _mean(values: NDArray[np.float64], draws: NDArray[np.float32]) -> dict[str, Any]:
    resampled = (draws @ values) / draws.sum(1)
    return {"value": float(values.mean()), "ci95": _interval(resampled)}


def _decibels(one: Judged, other: Judged | None = None) -> dict[str, Any]:
    """SQNR of all images together, or how many decibels better than the other's."""
    signal, divided = (one.signal, one.error) if other is None else (other.error, one.error)
    if not divided.sum() or not signal.sum():
        return {"value": None, "ci95": None}
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = 10 * np.log10((one.draws @ signal) / (one.draws @ divided))
    return {"value": float(10 * np.log10(signal.sum() / divided.sum())), "ci95": _interval(resampled)}


def _interval(resampled: NDArray[np.float64]) -> list[float] | None:
    usable = resampled[np.isfinite(resampled)]
    if not len(usable):
        return None
    low, high = np.quantile(usable, [0.025, 0.975])
    return [float(low), float(high)]


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
