"""Match a teacher's features before their ReLU, as far as they matter behind it (feature overhaul)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from edgekd.losses._base import Step, float32
from edgekd.losses._connectors import projection
from edgekd.losses._gather import gathered
from edgekd.losses._pairs import PairedLoss, PairOptions

__all__ = ["OFD", "margin_from_batch_norm", "ofd"]


def ofd(guided: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Partial L2 distance to the teacher's features behind a margin ReLU.

    The target of each position is max(teacher, margin). Where the target is not positive and the student is not
    above it the distance is 0: both are cut to 0 by the ReLU that follows.

    Args:
        guided: the student's features before the ReLU, after the connector, shape (B, C, H, W).
        target: the teacher's before the ReLU, same shape; no gradient flows into it.
        margin: one value <= 0 for each of the teacher's channels, shape (C,).

    Returns:
        Scalar, float32: the sum over features, mean over the batch.

    Reference: Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", 2019,
    arXiv:1904.01866, section 3.

    >>> import torch
    >>> s, t = torch.tensor([1.0, -3.0, 0.0]).view(1, 3, 1, 1), torch.tensor([3.0, -1.0, -9.0]).view(1, 3, 1, 1)
    >>> ofd(s, t, torch.full((3,), -2.0)).item()  # (1 - 3)^2; -3 is below -1 <= 0; (0 - max(-9, -2))^2
    8.0
    """
    ours, theirs = float32(guided), torch.maximum(float32(target.detach()), margin[:, None, None])
    matters = (ours > theirs) | (theirs > 0)
    return torch.where(matters, ours - theirs, 0.0).square().sum() / len(ours)


def margin_from_batch_norm(weight: Tensor, bias: Tensor) -> Tensor:
    """The expectation of a channel's negative values, where a batch norm gives the channel.

    The channel is taken as normally distributed with mean beta and standard deviation |gamma|, whose expectation
    below 0 is beta - |gamma| phi(z) / Phi(-z) with z = beta / |gamma|. The ratio is taken where neither phi nor Phi
    underflows, so channels that are hardly ever negative need no special value.

    Args:
        weight: gamma, shape (C,).
        bias: beta, shape (C,).

    Returns:
        Margins, shape (C,), float32, <= 0. A channel with gamma = 0 is constant: its margin is min(beta, 0).

    Reference: as `ofd`, the expectation of negative responses; the authors' code takes -3 |gamma| where negative
    values have a probability below 0.001.

    >>> import torch
    >>> margin_from_batch_norm(torch.tensor([1.0]), torch.tensor([0.0]))  # -sqrt(2 / pi)
    tensor([-0.7979])
    """
    spread, mean = weight.detach().double().abs(), bias.detach().double()
    z = mean / spread
    ratio = math.sqrt(2 / math.pi) / torch.special.erfcx(z / math.sqrt(2))
    # the ratio tends to z + 1 / z, whose difference from z is lost to rounding at last
    margin = torch.where(z > 1e4, -spread / z, mean - spread * ratio)
    return torch.where(spread > 0, margin, mean).clamp_max(0.0).float()


class OFD(PairedLoss):
    """Learn the teacher's features before their ReLU through a 1x1 convolution and batch norm.

    Tap layers whose outputs go into a ReLU. The last pair counts once, each pair before it half as much as the one
    behind it. Recommended weight: 1e-3 (the authors', CIFAR-100).

    The paper computes the margins from the batch norm before the tap, which is `margin_from_batch_norm`. A loss sees
    tensors only, and the batch norm may have been folded, so the margins are what that formula stands for: the mean
    of the teacher's negative responses in each channel, measured on the first `margin_steps` batches and fixed from
    then on (0 where there was none). They are buffers, so a resumed run has the same margins.
    """

    class Options(PairOptions):
        """Options of `ofd`."""

        margin_steps: int = Field(100, ge=0, description="batches that measure the margins; 0: the margins are 0")

    family = "feature"
    batchwise = True
    connectors: nn.ModuleList
    margins: nn.ModuleList

    def _build(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        steps = cast(OFD.Options, self.options).margin_steps
        self.connectors = nn.ModuleList(projection(ours.shape[1], theirs.shape[1]) for ours, theirs in maps)
        self.margins = nn.ModuleList(_Margin(theirs.shape[1], steps) for _, theirs in maps)

    def forward(self, step: Step) -> Tensor:
        """The sum over the layer pairs of one step."""
        pairs = list(zip(self._maps(step), self.connectors, self.margins, strict=True))
        terms = [
            ofd(connector(ours), theirs, margin(theirs)) / 2 ** (len(pairs) - 1 - depth)
            for depth, ((ours, theirs), connector, margin) in enumerate(pairs)
        ]
        return torch.stack(terms).sum()


class _Margin(nn.Module):
    """The mean of each channel's negative values in the first batches."""

    total: Tensor
    count: Tensor
    seen: Tensor

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.fixed = False
        self.register_buffer("total", torch.zeros(channels))
        self.register_buffer("count", torch.zeros(channels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to margins (C,); learns from the maps in training mode while steps are left."""
        if self.training and not self.fixed:
            # asking the device for `seen` waits for it, so it is asked no more once the margins are fixed
            self.fixed = int(self.seen) >= self.steps
            if not self.fixed:
                self._learn(maps)
        return self.total / self.count.clamp_min(1.0)

    def _learn(self, maps: Tensor) -> None:
        below = maps.clamp_max(0.0).sum(dim=(0, 2, 3)), (maps < 0).sum(dim=(0, 2, 3)).to(maps.dtype)
        total, count = gathered(torch.stack(below)[None]).sum(0)
        self.total.add_(total)
        self.count.add_(count)
        self.seen.add_(1)
