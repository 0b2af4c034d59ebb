"""Match which samples of a batch are likely neighbours (probabilistic knowledge transfer)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.losses._base import Step, float32
from edgekd.losses._relations import Relation, full_precision, unit

__all__ = ["PKT", "pkt"]

_SMALLEST = 1e-7  # kernel of opposite vectors, so that no probability is 0


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of neighbour probabilities, mean over the pairs of distinct samples.

    The probability that sample j is picked as the neighbour of sample i is the cosine kernel (1 + cos) / 2 of the two
    over its sum for all other samples. The paper sums the divergence over pairs; the mean is what the published
    weight of 30000 belongs to, and it makes values of about 1e-5. The authors' code also counts each sample as its own
    neighbour, which changes the value by a part of about 1 / B.

    Args:
        student: embeddings, shape (B, D).
        teacher: embeddings, shape (B, E), any E; no gradient flows into it.

    Returns:
        Scalar in nats, float32; 0 for a batch of one or two, where a sample has no neighbours to choose from.

    Reference: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", 2018,
    arXiv:1803.10837, section 3.

    >>> import torch
    >>> t = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])  # every neighbour 1/2
    >>> s = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # 1/2, 1/2 then 1/3, 2/3 twice
    >>> round(pkt(s, t).item(), 4)  # (0 + 2 (ln 1.5 + ln 0.75) / 2) / 6
    0.0196
    """
    with full_precision(student):
        ours, theirs = (_log_probabilities(float32(one)) for one in (student, teacher.detach()))
    divergence = F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return divergence / max(theirs.numel(), 1)


class PKT(Relation):
    """Learn the teacher's neighbour probabilities in a batch; published weight 30000, on the last pooled layer."""

    def forward(self, step: Step) -> Tensor:
        """The neighbour term of one step."""
        return pkt(*self.embeddings(step))


def _log_probabilities(embeddings: Tensor) -> Tensor:
    """Row i: the logarithms for every other sample, shape (B, B - 1)."""
    size = len(embeddings)
    directions = unit(embeddings)
    kernel = ((1 + directions @ directions.T) / 2).clamp_min(0) + _SMALLEST
    others = kernel[~torch.eye(size, dtype=torch.bool, device=kernel.device)].view(size, size - 1)
    return (others / others.sum(dim=1, keepdim=True)).log()
