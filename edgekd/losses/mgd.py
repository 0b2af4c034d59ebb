"""Generate a teacher's features from a student's, parts of which are masked (masked generative)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from edgekd.augment import uniforms
from edgekd.losses._base import Step, float32
from edgekd.losses._pairs import PairedLoss, PairOptions

__all__ = ["MGD", "mgd"]

Mask = Literal["space", "channel"]


def mgd(generated: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the generated features from the teacher's.

    Args:
        generated: what the generation block made of the masked student's features, shape (B, C, H, W).
        target: the teacher's features, same shape; no gradient flows into it.

    Returns:
        Scalar, float32: the sum over features, mean over the batch, which the published weights belong to.

    Reference: Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", 2022, arXiv:2205.01529, section 3.

    >>> import torch
    >>> s, t = torch.tensor([[[[1.0]]], [[[5.0]]]]), torch.tensor([[[[3.0]]], [[[4.0]]]])
    >>> mgd(s, t).item()  # ((1 - 3)^2 + (5 - 4)^2) / 2
    2.5
    """
    return (float32(generated) - float32(target.detach())).square().sum() / len(generated)


class MGD(PairedLoss):
    """Learn features from whose unmasked part a small block can generate the teacher's.

    The student's features go through a 1x1 convolution where channels differ, lose what the mask takes, and go
    through a 3x3 convolution, ReLU and another 3x3 convolution. Recommended: one pair, the last maps before the
    pooling, weight 7e-5 (alpha of the paper for ImageNet).

    The mask of a sample is a pure function of the sample, the epoch and a number drawn when the loss is connected,
    which is kept in checkpoints: batch order, batch size and number of processes do not change it.

    A student equal to its teacher has a loss above 0: the block cannot know what was masked.
    """

    class Options(PairOptions):
        """Options of `mgd`."""

        masked: float = Field(0.15, ge=0.0, lt=1.0, description="share that is masked, lambda; 0.15 suits ImageNet")
        mask: Mask = Field(
            "space",
            description="what is masked: positions (the paper), or channels (the authors' code for classification)",
        )

    family = "feature"
    zero_at_teacher = False
    takes_vectors = False
    aligners: nn.ModuleList
    generators: nn.ModuleList
    seed: Tensor

    def _build(self, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
        channels = [(ours.shape[1], theirs.shape[1]) for ours, theirs in maps]
        self.aligners = nn.ModuleList(
            nn.Conv2d(*pair, 1) if len(set(pair)) == 2 else nn.Identity() for pair in channels
        )
        self.generators = nn.ModuleList(_generator(theirs) for _, theirs in channels)
        self.register_buffer("seed", torch.randint(2**62, ()))

    def forward(self, step: Step) -> Tensor:
        """The sum over the layer pairs of one step."""
        terms = []
        pairs = zip(self._maps(step), self.aligners, self.generators, strict=True)
        for index, ((ours, theirs), align, generate) in enumerate(pairs):
            aligned = align(ours)
            kept = self._kept(step, index, aligned)
            terms.append(mgd(generate(aligned * kept), theirs))
        return torch.stack(terms).sum()

    def _kept(self, step: Step, index: int, maps: Tensor) -> Tensor:
        """0 where the maps are masked and 1 elsewhere, shape (B, 1, H, W) or (B, C, 1, 1)."""
        options = cast(MGD.Options, self.options)
        shape = (1, *maps.shape[2:]) if options.mask == "space" else (maps.shape[1], 1, 1)
        places = shape[0] * shape[1] * shape[2]
        # a number of its own for each place of each sample
        numbers = step.ids.cpu()[:, None] * places + torch.arange(places)
        draws = uniforms(numbers.flatten(), seed=int(self.seed), epoch=step.epoch, stream=f"mgd {index}")
        return (draws >= options.masked).view(-1, *shape).to(maps)


def _generator(channels: int) -> nn.Sequential:
    first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(), second)
