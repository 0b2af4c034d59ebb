"""What a cache of the answers to some batches must say of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgekd._cache_layout import Dtype, Fingerprint
from edgekd.augment import AUGMENT_VERSION
from edgekd.batches import Batches
from edgekd.errors import UsageError

__all__ = ["fingerprint_of", "kept_classes", "kept_dtype"]

_DENSE, _SPARSE = 64, 32


def kept_classes(top_k: int | None, classes: int) -> int | None:
    """How many logits are kept of so many classes; None for all: what is asked for, else all up to 64, else 32."""
    wanted = top_k or (classes if classes <= _DENSE else _SPARSE)
    return None if wanted >= classes else wanted


def kept_dtype(dtype: Literal["auto", "float32", "float16", "bfloat16"], top_k: int | None) -> Dtype:
    """In which type logits and taps are kept; auto is float32 where all logits are, float16 where k are."""
    if dtype != "auto":
        return dtype
    return "float32" if top_k is None else "float16"


def fingerprint_of(
    batches: Batches,
    *,
    teacher: str,
    data: str,
    top_k: int | None = None,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    taps: Sequence[str] = (),
    precision: str = "float32",
) -> Fingerprint:
    """What a cache of the answers to these batches must say of itself.

    Args:
        batches: plain ones; their own settings are taken over.
        teacher: id of the teacher's artifact.
        data: fingerprint of the data set.
        top_k: see `kept_classes`.
        dtype: see `kept_dtype`.
        taps: the teacher's layers that are kept.
        precision: in which the teacher computes.

    Raises:
        UsageError: batches that are not plain, or without augmentation settings.
    """
    if batches.sampling != "plain" or batches.augment is None:
        raise UsageError("A teacher cache is of plain batches with augmentation settings: each sample once an epoch.")
    kept = kept_classes(top_k, batches.classes)
    return Fingerprint(
        preprocessing=batches.preprocessing,
        augment=batches.augment.settings,
        augment_version=AUGMENT_VERSION,
        seed=batches.seed,
        samples=min(len(batches) * batches.batch_size, len(batches.samples)),
        classes=batches.classes,
        top_k=kept,
        dtype=kept_dtype(dtype, kept),
        taps=list(taps),
        precision=precision,
        batch_size=batches.batch_size if batches.augment.settings.mixup > 0 else None,
        data=data,
        teacher=teacher,
    )
