"""Match which of a teacher's neurons fire: hinge loss on the activation boundaries (AB)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.losses._base import Step, float32
from edgekd.losses._connectors import projection
from edgekd.losses._pairs import PairedLoss, PairOptions

__all__ = ["AB", "ab"]


def ab(guided: Tensor, target: Tensor, *, margin: float) -> Tensor:
    """Squared hinge that puts each of the student's neurons on the teacher's side of 0.

    Where the teacher's neuron fires (> 0) the student should be above the margin, elsewhere below its negative. How
    strongly the teacher's neuron fires makes no difference.

    Args:
        guided: the student's features before the ReLU, after the connector, shape (B, C, H, W).
        target: the teacher's before the ReLU, same shape; no gradient flows into it.
        margin: mu of the paper, > 0.

    Returns:
        Scalar, float32: the sum over features, mean over the batch.

    Reference: Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
    Neurons", 2018, arXiv:1811.03233, the alternative loss.

    >>> import torch
    >>> s, t = torch.tensor([[[[0.5, 2.0, 1.0]]]]), torch.tensor([[[[0.1, 9.0, -0.1]]]])
    >>> ab(s, t, margin=1.0).item()  # (1 - 0.5)^2; 2 is above 1; (1 + 1)^2
    4.25
    """
    ours = float32(guided)
    return F.relu(torch.where(target.detach() > 0, margin - ours, margin + ours)).square().sum() / len(ours)


class AB(PairedLoss):
    """Learn which of the teacher's neurons fire, through a 1x1 convolution and batch norm where channels differ.

    Tap layers whose outputs go into a ReLU. The last pair counts once, each pair before it half as much as the one
    behind it. Recommended weight: 3e-3 (the authors', CIFAR-10).

    In the paper it is a stage of its own, which initialises the student before the labels or a response loss train
    it. `until` ends the term within a run; the whole paper is a run of two stages, the first with this loss alone.

    A student equal to its teacher has a loss above 0: neurons within the margin are pushed out of it.
    """

    class Options(PairOptions):
        """Options of `ab`."""

        margin: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="distance to keep from the boundary")
        until: float = Field(1.0, ge=0.0, le=1.0, description="fraction of the training after which the term is 0")

    family = "feature"
    batchwise = True
    zero_at_teacher = False
    connectors: nn.ModuleList

    def _build(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        channels = [(ours.shape[1], theirs.shape[1]) for ours, theirs in maps]
        self.connectors = nn.ModuleList(
            projection(*pair) if len(set(pair)) == 2 else nn.Identity() for pair in channels
        )

    def forward(self, step: Step) -> Tensor:
        """The sum over the layer pairs of one step; 0 from `until` on."""
        options = cast(AB.Options, self.options)
        if step.progress >= options.until:
            return self._nothing(step)
        pairs = list(zip(self._maps(step), self.connectors, strict=True))
        terms = [
            ab(connector(ours), theirs, margin=options.margin) / 2 ** (len(pairs) - 1 - depth)
            for depth, ((ours, theirs), connector) in enumerate(pairs)
        ]
        return torch.stack(terms).sum()

    def _nothing(self, step: Step) -> Tensor:
        # a gradient of 0 and not none: averaging over processes waits for every connector's
        return torch.stack([float32(one).sum() * 0.0 for one in (step.student.logits, *self.parameters())]).sum()
