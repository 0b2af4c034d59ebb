"""Match the attention maps of a transformer's layers (TinyBERT)."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._layer_map import LayerPairs

__all__ = ["AttentionMaps", "attention_maps"]

SMALLEST = 1e-6  # of a probability: its logarithm has the gradient one over it


def attention_maps(
    student: Tensor,
    teacher: Tensor,
    *,
    distance: Literal["mse", "kl"] = "mse",
    softmax: bool = False,
    heads: Literal["match", "mean"] = "match",
) -> Tensor:
    """Distance of two layers' attention maps.

    Args:
        student: shape (B, h, N, N): for each head and each query a row over the keys; raw scores, or probabilities
            where the rows sum to one.
        teacher: same shape, but for h where `heads` is "mean"; no gradient flows into it.
        distance: "mse" is the mean squared difference over the batch, heads, queries and keys; "kl" is
            KL(row_teacher || row_student) in nats, mean over the batch, heads and queries, and needs probabilities.
        softmax: turn rows of raw scores into probabilities first.
        heads: "match" compares head by head; "mean" compares the means over the heads.

    Returns:
        Scalar, float32.

    Reference: Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT: Distilling BERT for Natural Language
    Understanding", 2019, arXiv:1909.10351, equation 7.

    >>> import torch
    >>> s, t = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[1.0, 0.0]]]])
    >>> attention_maps(s, t).item(), round(attention_maps(s, t, distance="kl").item(), 4)  # (1/4 + 1/4) / 2, ln 2
    (0.25, 0.6931)
    """
    ours, theirs = float32(student), float32(teacher.detach())
    if distance == "kl" and softmax and heads == "match":
        rows = F.kl_div(F.log_softmax(ours, -1), F.log_softmax(theirs, -1), reduction="none", log_target=True)
        return rows.sum(dim=-1).mean()
    if softmax:
        ours, theirs = ours.softmax(dim=-1), theirs.softmax(dim=-1)
    if heads == "mean":
        ours, theirs = ours.mean(dim=1), theirs.mean(dim=1)
    if distance == "mse":
        return F.mse_loss(ours, theirs)
    log_ours, log_theirs = (one.clamp_min(SMALLEST).log() for one in (ours, theirs))
    return (theirs * (log_theirs - log_ours)).sum(dim=-1).mean()


class AttentionMaps(Loss):
    """Learn where the teacher's layers attend; the sum over the layer pairs, and no connector is needed.

    The paper fits the raw scores, Q K^T / sqrt(d), by their squared difference, with weight 1, because that converged
    faster than fitting probabilities. Probabilities are about 1/N, so their squared differences are small: prefer
    `distance = "kl"` for them, again with weight 1.

    A map can be tapped only where it is computed: fused attention never makes one. With timm's vision transformers
    turn it off before the networks are built, by the environment variable TIMM_FUSED_ATTN=0 or by
    `timm.layers.set_fused_attn(False)`, and tap `blocks.{}.attn.attn_drop`: its output is the probabilities,
    (B, h, N, N), while its rate is 0 as it is by default. The loss `minilm` computes the maps itself from
    `blocks.11.attn.qkv` and works with fused attention.
    """

    class Options(LayerPairs):
        """Options of `attention_maps`."""

        distance: Literal["mse", "kl"] = Field(
            "mse",
            description="squared difference of the maps as they are, or KL of their rows, which are probabilities",
        )
        softmax: bool = Field(False, description="the taps hold raw scores that are compared as probabilities")
        heads: Literal["match", "mean"] = Field(
            "match", description="head by head, or mean over the heads where the two numbers of heads differ"
        )

    family = "attention"

    def student_taps(self) -> tuple[str, ...]:
        """The student's maps."""
        return tuple(ours for ours, _ in self._options.pairs())

    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's maps, in the same order."""
        return tuple(theirs for _, theirs in self._options.pairs())

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check that every tap is a map and that the two sides fit.

        Raises:
            MismatchError: a tap that is not (B, h, N, N), other numbers of tokens, or other numbers of heads where
                they are compared one by one.
        """
        assert teacher is not None
        for ours, theirs in self._options.pairs():
            one, other = tuple(student.taps[ours].shape), tuple(teacher.taps[theirs].shape)
            sides = f"student tap '{ours}' of shape {one} and teacher tap '{theirs}' of shape {other}"
            if len(one) != 4 or len(other) != 4:
                raise MismatchError(
                    f"attention_maps needs taps of shape (B, h, N, N), got {sides}. Tap the attention's probabilities"
                    " or scores, with fused attention turned off."
                )
            if one[2:] != other[2:]:
                raise MismatchError(
                    f"attention_maps cannot join {sides}: the numbers of tokens differ. Give both networks the same"
                    " patch size, input size and extra tokens."
                )
            if one[1] != other[1] and self._options.heads == "match":
                raise MismatchError(
                    f"attention_maps cannot join {sides}: {one[1]} and {other[1]} heads. Compare their means with"
                    " heads = \"mean\", or use the loss 'minilm' with relation heads."
                )

    def forward(self, step: Step) -> Tensor:
        """The sum over the layer pairs of one step."""
        options = self._options
        terms = [
            attention_maps(
                step.student.taps[ours],
                step.teacher.taps[theirs],
                distance=options.distance,
                softmax=options.softmax,
                heads=options.heads,
            )
            for ours, theirs in options.pairs()
        ]
        return torch.stack(terms).sum()

    @property
    def _options(self) -> Options:
        return cast(AttentionMaps.Options, self.options)
