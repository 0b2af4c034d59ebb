"""Match the angles between triplets of samples (relational knowledge distillation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edgekd.losses._base import Step, float32
from edgekd.losses._relations import Relation, full_precision, unit

__all__ = ["RKDAngle", "rkd_angle"]

_LARGEST = 1 << 24  # values held at once: 64 MiB


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles that triplets form, mean over triplets of distinct samples.

    The angle at sample j lies between the directions to samples i and k. Two equal samples have no direction: their
    cosines count as 0. Equation 8 sums over triplets; the mean makes the weight independent of B, and it is what the
    published weight of 50 belongs to. The authors' code averages over all B^3 triplets, also over those that name a
    sample twice and are 0, which makes its value smaller by the factor (B - 1)(B - 2) / B^2.

    There are B^3 angles. The vertices j are taken in groups, and in the backward pass each group is computed again,
    so that memory grows with B^2 only.

    Args:
        student: embeddings, shape (B, D).
        teacher: embeddings, shape (B, E), any E; no gradient flows into it.

    Returns:
        Scalar, float32, in [0, 1.5]; 0 for a batch of one or two.

    Reference: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", 2019, arXiv:1904.05068, equations 6 to 8.

    >>> import torch
    >>> s = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])  # cosines 1, -1, 1 on a line
    >>> t = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # 0, 1/sqrt 2, 1/sqrt 2 in a right triangle
    >>> round(rkd_angle(s, t).item(), 4)  # (1/2 + 1.7071 - 1/2 + 0.2929^2 / 2) / 3
    0.5833
    """
    ours, theirs = float32(student), float32(teacher.detach())
    size = len(ours)
    together = max(1, _LARGEST // (size * (ours.shape[1] + theirs.shape[1] + 3 * size)))
    total = ours.new_zeros(())
    for first in range(0, size, together):
        last = min(first + together, size)
        if together >= size:
            total = total + _differences(ours, theirs, first, last)
        else:
            total = total + checkpoint(
                _differences, ours, theirs, first, last, use_reentrant=False, preserve_rng_state=False
            )
    return total / max(size * (size - 1) * (size - 2), 1)


class RKDAngle(Relation):
    """Learn the angles between the teacher's embeddings of a batch; published weight 50."""

    def forward(self, step: Step) -> Tensor:
        """The angle term of one step."""
        return rkd_angle(*self.embeddings(step))


def _differences(ours: Tensor, theirs: Tensor, first: int, last: int) -> Tensor:
    """The sum over the triplets whose vertex is one of the samples first to last - 1."""
    # a vertex has no direction to itself, so triplets that name it twice are 0 on both sides; i = k is left out here
    distinct = 1 - torch.eye(len(ours), device=ours.device)
    with full_precision(ours):
        huber = F.huber_loss(_cosines(ours, first, last), _cosines(theirs, first, last), reduction="none")
    return (huber * distinct).sum()


def _cosines(embeddings: Tensor, first: int, last: int) -> Tensor:
    """Entry (j, i, k): the cosine at vertex first + j between i and k, shape (last - first, B, B)."""
    directions = unit(embeddings[None] - embeddings[first:last, None])
    return directions @ directions.transpose(1, 2)
