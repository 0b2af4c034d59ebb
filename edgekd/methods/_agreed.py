"""What networks that learn together agree on: one set of logits that teaches them, made from those of all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.losses._base import float32

__all__ = ["best_mix", "lowest_logits", "mean_of_others", "smallest_loss"]

_SWEEPS = 6  # over all pairs of networks; with two, the first one ends at the minimum
_HALVINGS = 20  # of the interval a share lies in: to a millionth


def mean_of_others(logits: Sequence[Tensor]) -> list[Tensor]:
    """For each network the mean of the others' logits; float32, each (B, K).

    Args:
        logits: of two networks or more, each (B, K).

    Reference: Song, Chai, "Collaborative Learning for Deep Neural Networks", 2018, arXiv:1805.11761, section 3.2.

    >>> import torch
    >>> [one.item() for one in mean_of_others([torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[6.0]])])]
    [4.0, 3.5, 1.5]
    """
    stacked = _stacked(logits)
    return list((stacked.sum(dim=0) - stacked) / (len(stacked) - 1))


def smallest_loss(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """For each sample the logits of the network with the smallest cross-entropy (KDCL-Naive); float32, shape (B, K).

    Args:
        logits: of every network, each (B, K).
        labels: that each network saw, class probabilities, each (B, K).

    Reference: Guo, Wang, Wu, Yu, Liang, Hu, Luo, "Online Knowledge Distillation via Collaborative Learning", CVPR 2020.

    >>> import torch
    >>> labels = torch.tensor([[1.0, 0.0]])
    >>> smallest_loss([torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 1.0]])], [labels, labels]).tolist()
    [[3.0, 1.0]]
    """
    stacked = _stacked(logits)
    errors = torch.stack(
        [F.cross_entropy(one, float32(label), reduction="none") for one, label in zip(stacked, labels, strict=True)]
    )
    best = errors.argmin(dim=0)
    return stacked[best, torch.arange(len(best), device=best.device)]


def lowest_logits(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """For each class the lowest logit of all, counted from the label's own (KDCL-MinLogit); float32, shape (B, K).

    The result's cross-entropy is at most that of the best network. With a label that is spread over classes, logits are
    counted from their mean under the label.

    Args:
        logits: of every network, each (B, K).
        labels: that each network saw, class probabilities, each (B, K).

    Reference: see `smallest_loss`.

    >>> import torch
    >>> labels = torch.tensor([[1.0, 0.0, 0.0]])
    >>> lowest_logits([torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[3.0, 3.0, 0.0]])], [labels, labels]).tolist()
    [[0.0, -1.0, -3.0]]
    """
    stacked = _stacked(logits)
    own = (stacked * torch.stack([float32(label) for label in labels])).sum(dim=2, keepdim=True)
    return (stacked - own).amin(dim=0)


def best_mix(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """For each sample the weighted mean of logits with the smallest cross-entropy (KDCL-Linear); float32, (B, K).

    Weights are not negative and sum to one, which makes the problem convex. Mass is moved between two networks at a
    time, by as much as is best, found by halving the interval; a few rounds over all pairs end close to the minimum.

    Args:
        logits: of every network, each (B, K).
        labels: that each network saw, class probabilities, each (B, K); their mean counts.

    Reference: see `smallest_loss`.

    >>> import torch
    >>> labels, logits = torch.tensor([[0.5, 0.5]]), [torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    >>> [round(one, 3) for one in best_mix(logits, [labels, labels])[0].tolist()]  # a quarter of the first
    [0.75, 0.75]
    """
    stacked, label = _stacked(logits), torch.stack([float32(one) for one in labels]).mean(dim=0)
    shares = stacked.new_full((len(stacked), stacked.shape[1], 1), 1 / len(stacked))
    for _ in range(_SWEEPS if len(stacked) > 2 else 1):
        for one, other in combinations(range(len(stacked)), 2):
            total, apart = shares[one] + shares[other], stacked[one] - stacked[other]
            rest = (shares * stacked).sum(dim=0) - shares[one] * apart
            shares[one] = _minimum(rest, apart, label, total)
            shares[other] = total - shares[one]
    return (shares * stacked).sum(dim=0)


def _minimum(start: Tensor, direction: Tensor, label: Tensor, length: Tensor) -> Tensor:
    """How far to go from `start`, in [0, length], to the smallest cross-entropy; shape (B, 1)."""
    low, high = torch.zeros_like(length), length.clone()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        slope = ((torch.softmax(start + middle * direction, dim=1) - label) * direction).sum(dim=1, keepdim=True)
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return (low + high) / 2


def _stacked(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack([float32(one.detach()) for one in logits])
