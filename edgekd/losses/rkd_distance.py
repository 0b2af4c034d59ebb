"""Match the distances between the samples of a batch (relational knowledge distillation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.losses._base import Step, float32
from edgekd.losses._relations import Relation

__all__ = ["RKDDistance", "rkd_distance"]

_SMALLEST_MEAN = 1e-12  # embeddings that all agree have no distance to divide by


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between normalised distances, mean over the pairs of distinct samples.

    Each side's distances are divided by their own mean, so scale does not matter. The mean leaves out distances of
    exactly 0, as the authors' code does. Equation 5 sums over pairs; the mean makes the weight independent of B, and
    it is what the published weight of 25 belongs to. The authors' code averages over the B zeros of the diagonal as
    well, which makes its value smaller by the factor (B - 1) / B.

    Args:
        student: embeddings, shape (B, D).
        teacher: embeddings, shape (B, E), any E; no gradient flows into it.

    Returns:
        Scalar, float32; 0 for a batch of fewer than three distinct samples.

    Reference: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", 2019, arXiv:1904.05068, equations 4 to 6.

    >>> import torch
    >>> s, t = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    >>> round(rkd_distance(s, t).item(), 6)  # (1, 2, 3) / 2 and (1, 1, 2) / (4/3): (1/16 + 1/16 + 0) / 2 / 3
    0.020833
    """
    ours, theirs = _distances(float32(student)), _distances(float32(teacher.detach()))
    return F.huber_loss(ours, theirs, reduction="sum") / max(len(ours) * (len(ours) - 1), 1)


class RKDDistance(Relation):
    """Learn how far apart the teacher sees the samples of a batch; published weight 25.

    The paper embeds with the last pooled layer. It adds `rkd_angle` for metric learning with weight 50.
    """

    def forward(self, step: Step) -> Tensor:
        """The distance term of one step."""
        return rkd_distance(*self.embeddings(step))


def _distances(embeddings: Tensor) -> Tensor:
    """Distances of every two rows, over their mean, shape (B, B)."""
    # from differences: squared norms minus products cancel for near neighbours. Its gradient at distance 0 is 0
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.clamp_min(_SMALLEST_MEAN)
