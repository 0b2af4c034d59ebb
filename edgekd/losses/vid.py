"""Predict a teacher's features with a learned variance per channel (variational information, VID)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.losses._base import Step, float32
from edgekd.losses._pairs import PairedLoss, PairOptions

__all__ = ["VID", "vid"]

FLOOR = 1e-5  # of the variance: a channel that the student predicts exactly must not divide by 0


def vid(mean: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """Negative log likelihood of the teacher's features under a normal distribution around the prediction.

    Its negative is a lower bound of the mutual information of the two layers, up to constants. The paper's sum over
    channels and positions is a mean here, as in the authors' code: the weight of the term does not depend on the size
    of the tapped layer. The constant log(2 pi) / 2 is left out.

    Args:
        mean: what the student's features predict, shape (B, C, H, W).
        target: the teacher's features, same shape; no gradient flows into it.
        variance: of each of the teacher's channels, shape (C,), > 0.

    Returns:
        Scalar, float32, in nats for each feature; negative where the variances are small.

    Reference: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", 2019,
    arXiv:1904.05835, section 2.

    >>> import torch
    >>> s, t = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1), torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)
    >>> vid(s, t, torch.ones(2)).item()  # ((3 - 1)^2 / 2 + 0) / 2
    1.0
    """
    spread = float32(variance)[:, None, None]
    return 0.5 * ((float32(target.detach()) - float32(mean)).square() / spread + spread.log()).mean()


class VID(PairedLoss):
    """Learn to predict the teacher's layers, and how far each of their channels can be predicted at all.

    The connector is three 1x1 convolutions with ReLU between them, as wide as the teacher's layer, without bias (the
    authors' code); the variances are the softplus of a trained number, plus a floor. Recommended weight: 1.

    A student equal to its teacher does not have a loss of 0: the log of the variance is part of it, and a better
    prediction only lets the variance fall further.
    """

    class Options(PairOptions):
        """Options of `vid`."""

        variance: float = Field(
            5.0, gt=1e-3, le=1e6, description="what every channel's variance starts with; 5 is the authors'"
        )

    family = "feature"
    zero_at_teacher = False
    predictors: nn.ModuleList
    spreads: nn.ParameterList

    def _build(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        start = _inverse_softplus(cast(VID.Options, self.options).variance - FLOOR)
        self.predictors = nn.ModuleList(_predictor(ours.shape[1], theirs.shape[1]) for ours, theirs in maps)
        self.spreads = nn.ParameterList(torch.full((theirs.shape[1],), start) for _, theirs in maps)

    def forward(self, step: Step) -> Tensor:
        """The sum over the layer pairs of one step."""
        pairs = zip(self._maps(step), self.predictors, self.spreads, strict=True)
        return torch.stack(
            [vid(predict(ours), theirs, F.softplus(spread) + FLOOR) for (ours, theirs), predict, spread in pairs]
        ).sum()


def _predictor(inputs: int, outputs: int) -> nn.Sequential:
    widths = [inputs, outputs, outputs, outputs]
    layers = [nn.Conv2d(width, outputs, 1, bias=False) for width in widths[:-1]]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
