"""Match each of a teacher's stages with the student's stages up to it, fused by attention (ReviewKD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.losses._base import Step, float32
from edgekd.losses._connectors import BatchNorm
from edgekd.losses._pairs import PairedLoss, PairOptions

__all__ = ["AttentionFusion", "ReviewKD", "hcl"]

LEVELS = (4, 2, 1)  # height and width of the pooled maps
WIDEST = 512  # channels of the fused maps, at most


def hcl(guided: Tensor, target: Tensor) -> Tensor:
    """Hierarchical context loss: mean squared difference of two maps and of what they pool to.

    The maps count 1; averaged down to 4x4, 2x2 and 1x1 (where that is smaller than they are) they count 1/2, 1/4 and
    1/8, or from 1/2 on what there is of it. The result is the weighted mean.

    Args:
        guided: the student's fused features, shape (B, C, H, W).
        target: the teacher's, same shape; no gradient flows into it.

    Returns:
        Scalar, float32: mean over the batch and over every feature, as in the authors' code.

    Reference: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", 2021, arXiv:2104.09044, section 3.3.

    >>> import torch
    >>> s, t = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]]), torch.zeros(1, 1, 2, 2)
    >>> hcl(s, t).item()  # 4 / 4 for the maps, (2 / 4)^2 for their means: (1 + 0.25 / 2) / (1 + 1 / 2)
    0.75
    """
    ours, theirs = float32(guided), float32(target.detach())
    height, width = ours.shape[2:]
    total, weight, weights = F.mse_loss(ours, theirs), 1.0, 1.0
    for level in LEVELS:
        if level >= max(height, width):
            continue
        size = (min(level, height), min(level, width))
        weight /= 2
        weights += weight
        total = total + weight * F.mse_loss(F.adaptive_avg_pool2d(ours, size), F.adaptive_avg_pool2d(theirs, size))
    return total / weights


class AttentionFusion(nn.Module):
    """Attention based fusion (ABF): join a stage's features with what comes from the deeper stages.

    Each position of the two gets a weight in (0, 1) from a 1x1 convolution of both and a sigmoid; the weighted sum is
    handed on to the shallower stage and, through a 3x3 convolution, compared with the teacher.

    Args:
        inputs: channels of the student's stage.
        width: channels of the fused maps.
        outputs: channels of the teacher's stage.
        deepest: nothing comes from deeper stages, and nothing is weighed.

    Reference: as `hcl`, section 3.3.
    """

    def __init__(self, inputs: int, width: int, outputs: int, *, deepest: bool) -> None:
        super().__init__()
        reduce = nn.Conv2d(inputs, width, 1, bias=False)
        expand = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
        for layer in (reduce, expand):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        self.reduce = nn.Sequential(reduce, BatchNorm(width))
        self.attend = None if deepest else nn.Conv2d(2 * width, 2, 1)
        self.expand = nn.Sequential(expand, BatchNorm(outputs))

    def forward(self, features: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fuse the features (B, C, H, W) of a stage with the fused maps of the stage behind it.

        Returns:
            What is compared with the teacher, shape (B, outputs, H, W), and the fused maps, shape (B, width, H, W).
        """
        fused = self.reduce(features)
        if self.attend is not None:
            assert deeper is not None
            enlarged = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            own, other = torch.sigmoid(float32(self.attend(torch.cat([fused, enlarged], dim=1)))).chunk(2, dim=1)
            fused = own * fused + other * enlarged
        return self.expand(fused), fused


class ReviewKD(PairedLoss):
    """Learn each of the teacher's stages from the student's same and deeper stages, fused from deep to shallow.

    Tap the outputs of all stages; the pooled features may be the last pair. Recommended weight: 1 for ImageNet, 0.6
    to 8 for CIFAR-100, with `warmup_epochs` of 20 there.

    Where the student's map is larger than the teacher's it is averaged down before the fusion, and where it is
    smaller the teacher's is averaged down; the authors' code resizes the student's to the teacher's in both cases.
    """

    class Options(PairOptions):
        """Options of `review_kd`."""

        warmup_epochs: int = Field(
            0, ge=0, description="epochs in which the term grows to its full weight, in equal steps; 20 for CIFAR-100"
        )

    family = "feature"
    batchwise = True
    fusions: nn.ModuleList

    def _build(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        width = min(WIDEST, maps[-1][0].shape[1])
        self.fusions = nn.ModuleList(
            AttentionFusion(ours.shape[1], width, theirs.shape[1], deepest=depth == len(maps) - 1)
            for depth, (ours, theirs) in enumerate(maps)
        )

    def forward(self, step: Step) -> Tensor:
        """The sum over the stages of one step."""
        terms: list[Tensor] = []
        fused: Tensor | None = None
        for (ours, theirs), fusion in reversed(list(zip(self._maps(step), self.fusions, strict=True))):
            guided, fused = fusion(ours, fused)
            terms.append(hcl(guided, theirs))
        return torch.stack(terms).sum() * self._warmth(step.epoch)

    def _warmth(self, epoch: int) -> float:
        """The share of the full weight, in (0, 1]: 1 / warmup_epochs in the first epoch."""
        epochs = cast(ReviewKD.Options, self.options).warmup_epochs
        return min(1.0, (epoch + 1) / epochs) if epochs else 1.0
