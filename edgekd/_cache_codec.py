"""How a teacher's logits are kept: all of them, or the largest and what the others have together."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from edgekd._cache_layout import index_dtype

__all__ = ["decoded", "encoded"]


def encoded(logits: Tensor, *, top_k: int | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """What is kept of logits.

    The k largest raw logits stay as they are. The other classes get one logit for all of them, so that together they
    keep their mass: the distribution is smoothed where it is small, and not sharpened as it would be by giving their
    mass to the k.

    Args:
        logits: shape (B, K).
        top_k: in [1, K - 1], or None for all.
        dtype: of what is kept.

    Returns:
        logits (B, K); or values (B, k), classes (B, k) and others (B,), a float32.

    >>> kept = encoded(torch.tensor([[2.0, 0.0, 1.0, 0.0]]), top_k=2, dtype=torch.float32)
    >>> kept["values"].tolist(), kept["classes"].tolist(), kept["others"].tolist()
    ([[2.0, 1.0]], [[0, 2]], [0.0])

    Reference: the seed and sparse logits of each view: Wu et al., "TinyViT: Fast Pretraining Distillation for Small
    Vision Transformers", 2022, arXiv:2207.10666, section 3.1.
    """
    if top_k is None:
        return {"logits": logits.to(dtype)}
    exact = logits.to(torch.float32)
    values, classes = exact.topk(top_k, dim=1)
    rest = exact.scatter(1, classes, -math.inf)
    others = torch.logsumexp(rest, dim=1) - math.log(logits.shape[1] - top_k)
    return {"values": values.to(dtype), "classes": classes.to(index_dtype(logits.shape[1])), "others": others}


def decoded(kept: Mapping[str, Tensor], *, classes: int) -> Tensor:
    """Logits (B, K), float32, from what `encoded` gave; on the device of what is given."""
    if "logits" in kept:
        return kept["logits"].to(torch.float32)
    spread = kept["others"][:, None].expand(-1, classes)
    return spread.scatter(1, kept["classes"].long(), kept["values"].to(torch.float32))
