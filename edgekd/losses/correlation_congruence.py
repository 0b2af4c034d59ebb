"""Match a Gaussian kernel between the samples of a batch (correlation congruence)."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd.losses._base import Step, float32
from edgekd.losses._relations import Relation, full_precision, unit

__all__ = ["CorrelationCongruence", "correlation_congruence"]


def correlation_congruence(student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Mean squared difference of two kernel matrices, over B^2 entries.

    The kernel of two embeddings of length one is exp(-gamma |x - y|^2) = exp(-2 gamma) exp(2 gamma x.y), with the last
    factor's Taylor series cut after `order`: products of up to `order` entries of each vector are compared.

    Args:
        student: embeddings, shape (B, D).
        teacher: embeddings, shape (B, E), any E; no gradient flows into it.
        gamma: > 0; larger values look at near neighbours only.
        order: P, the highest power of the series, >= 1.

    Returns:
        Scalar, float32, in [0, 1).

    Reference: Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, "Correlation Congruence for Knowledge Distillation", 2019,
    arXiv:1904.01802, section 3.3 for the kernel and its series, section 3.2 for the loss.

    >>> import torch
    >>> s, t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0], [3.0]])  # x.y = 0 and 1
    >>> round(correlation_congruence(s, t, gamma=0.5, order=2).item(), 4)  # (1.5 exp(-1))^2, 2 of 4 entries
    0.1523
    """
    with full_precision(student):
        ours, theirs = (_kernel(float32(one), gamma, order) for one in (student, teacher.detach()))
        return F.mse_loss(ours, theirs)


class CorrelationCongruence(Relation):
    """Learn the teacher's kernel matrix of a batch.

    The paper maps both embeddings to a common size with a linear layer each. Here neither side has one: kernel
    matrices are (B, B) whatever the sizes, and a trained layer on the teacher's side would let the two agree by
    forgetting what the teacher knows. Equal samples agree by themselves, so a batch must hold several of a class.

    The weight of 0.02 that is often quoted belongs to another formula of the same name (products of neighbouring
    samples' differences, in RepDistiller). Kernel values that differ by 0.1 give 0.01 here: start near a weight of 100.
    """

    class Options(Relation.Options):
        """Options of `correlation_congruence`."""

        gamma: float = Field(0.4, gt=0.0, le=10.0, description="1 / (2 sigma^2) of the Gaussian kernel")
        order: int = Field(2, ge=1, le=16, description="highest power of the kernel's series")

    def forward(self, step: Step) -> Tensor:
        """The kernel term of one step."""
        options = cast(CorrelationCongruence.Options, self.options)
        return correlation_congruence(*self.embeddings(step), gamma=options.gamma, order=options.order)


def _kernel(embeddings: Tensor, gamma: float, order: int) -> Tensor:
    directions = unit(embeddings)
    exponents = 2 * gamma * (directions @ directions.T)
    term = total = torch.ones_like(exponents)
    for power in range(1, order + 1):
        term = term * exponents / power
        total = total + term
    return math.exp(-2 * gamma) * total
