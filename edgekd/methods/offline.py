"""Trained teachers, one or several, frozen, teach the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, cast

from pydantic import Field, model_validator
from torch import Tensor

from edgekd import spec
from edgekd.errors import UsageError
from edgekd.losses._base import Outputs
from edgekd.methods._panel import confident_shares, given_shares
from edgekd.methods._taught import Taught

__all__ = ["Offline"]


class Offline(Taught):
    """Distil frozen teachers: every network sees the same augmented batch.

    Teachers are always in eval mode and their outputs carry no gradient. Of several, losses on logits see the mean of
    their probabilities, evenly, by given shares, or by how close each teacher comes to the label of each sample; a
    loss on features names the teacher whose tap it reads, `2:layer3` for the second one's.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531;
    same batch for both: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent",
    2021, arXiv:2106.05237; several teachers: You, Xu, Xu, Tao, "Learning from Multiple Teacher Networks", 2017;
    by confidence: Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", 2022,
    arXiv:2201.00007, equations 2 to 4 (its second half, on features, is left to the losses).
    """

    class Options(spec.Options):
        """Options of `offline`; they count where there are several teachers."""

        weighting: Literal["mean", "fixed", "confidence"] = Field(
            "mean", description="how several teachers are averaged; confidence: by their error on each sample's label"
        )
        shares: list[float] | None = Field(None, description="fixed: one for each teacher; scaled to sum to 1")

        @model_validator(mode="after")
        def _together(self) -> Self:
            if (self.weighting == "fixed") != (self.shares is not None):
                raise ValueError("weighting = 'fixed' and shares belong together")
            if self.shares is not None and (min(self.shares, default=0.0) < 0 or sum(self.shares) <= 0):
                raise ValueError("shares must not be negative, nor all be 0")
            return self

    def prepare(self, example: Tensor) -> None:
        """Check all sides on one example, and build the connectors.

        Args:
            example: inputs, shape (B, C, H, W).

        Raises:
            UsageError: no teacher, shares for another number of them, or a tap that is not there.
            MismatchError: the sides do not fit; the message names both.
        """
        options, split = cast(Offline.Options, self.options), self.context.split
        if options.shares is not None and len(options.shares) != len(self.teachers):
            raise UsageError(
                f"method_options.shares has {len(options.shares)} values for {len(self.teachers)} teachers."
            )
        if options.weighting == "confidence" and split is not None and not split.labelled:
            raise UsageError("weighting = 'confidence' needs labels, but the training split has samples without.")
        super().prepare(example)

    def _shares(self, teachers: Sequence[Outputs], labels: Tensor) -> Tensor:
        """How much each teacher counts for each sample, shape (B, T)."""
        options = cast(Offline.Options, self.options)
        if options.weighting == "confidence":
            return confident_shares(teachers, labels)
        return given_shares(options.shares or [1.0] * len(teachers), labels)
