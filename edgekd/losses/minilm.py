"""Match the relations between tokens inside self-attention (MiniLM, MiniLMv2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from edgekd import spec
from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step, float32

__all__ = ["MiniLM", "minilm"]

Relation = Literal["qq", "qk", "qv", "kq", "kk", "kv", "vq", "vk", "vv"]


def minilm(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, heads: int, relations: Sequence[str] = ("qk", "vv")
) -> Tensor:
    """KL of the relations between tokens, summed over the kinds of relation.

    A relation is the softmax over the tokens j of x_i . y_j / sqrt(d), for each head and each token i, where x and y
    are two of the queries, keys and values and d is the width of a head. "qk" is the attention itself.

    Args:
        student: queries, keys and values, each of shape (B, N, D), heads side by side in D.
        teacher: the same with its own D; no gradient flows into it.
        heads: number of heads that D is split into, on both sides.
        relations: kinds of relation, each two letters of q, k and v.

    Returns:
        Scalar in nats, float32: for each kind KL(teacher || student), mean over the batch, heads and tokens.

    Reference: Wang, Wei, Dong, Bao, Yang, Zhou, "MiniLM: Deep Self-Attention Distillation for Task-Agnostic
    Compression of Pre-Trained Transformers", 2020, arXiv:2002.10957, equations 4 to 8; other relations and numbers
    of heads: Wang, Bao, Huang, Dong, Wei, "MiniLMv2", 2020, arXiv:2012.15828, section 3.

    >>> import torch
    >>> s, t = torch.zeros(1, 2, 1), torch.tensor([[[0.0], [1.0986123]]])
    >>> # token 0 relates (1/2, 1/2) on both sides; token 1 in the teacher: scores (0, ln(3)^2), so (.23, .77)
    >>> round(minilm([s, s, s], [t, t, t], heads=1, relations=["vv"]).item(), 4)
    0.0768
    """
    pairs = [("qkv".index(kind[0]), "qkv".index(kind[1])) for kind in relations]
    # under autocast the products of large half-precision numbers would be infinite
    with torch.autocast(student[0].device.type, enabled=False):
        ours, theirs = (
            [float32(one).reshape(*one.shape[:2], heads, -1).transpose(1, 2) for one in side]
            for side in (student, [one.detach() for one in teacher])
        )
        terms = [_divergence(_log_relation(ours[i], ours[j]), _log_relation(theirs[i], theirs[j])) for i, j in pairs]
    return torch.stack(terms).sum()


class MiniLM(Loss):
    """Learn how the tokens of one layer relate, as the teacher's self-attention sees it; no connector is needed.

    The published weight is 1, as the only term. MiniLM matches the last layers, with `heads` the number of attention
    heads of both networks. MiniLMv2 takes `relations = ["qq", "kk", "vv"]` and any number of heads that divides both
    widths, so that networks of other widths and head counts fit: 48 for a teacher of width 768, sixteen features a
    head. For teachers of 24 layers it matches a layer a few before the last.

    With timm's vision transformers tap `blocks.11.attn.qkv`, fused attention or not. A position bias that a network
    adds to its scores (Swin, BEiT) or a norm of its queries and keys is not part of "qk": leave it out there.
    """

    class Options(spec.Options):
        """Options of `minilm`."""

        student_taps: list[str] = Field(
            description="one tap with queries, keys and values side by side, (B, N, 3D), or three taps (B, N, D)"
        )
        teacher_taps: list[str] = Field(description="the same for the teacher, one tap or three")
        heads: int = Field(
            ge=1, description="attention heads of both networks for qk, or any number of relation heads without it"
        )
        relations: list[Relation] = Field(
            ["qk", "vv"], min_length=1, description='MiniLM: ["qk", "vv"]; MiniLMv2: ["qq", "kk", "vv"]'
        )

        @model_validator(mode="after")
        def _one_or_three(self) -> Self:
            for side, taps in (("student_taps", self.student_taps), ("teacher_taps", self.teacher_taps)):
                if len(taps) not in (1, 3):
                    raise ValueError(
                        f"{side} must be one tap that holds queries, keys and values, or three taps, got {len(taps)}"
                    )
            if len(set(self.relations)) != len(self.relations):
                raise ValueError(f"relations must not repeat, got {self.relations}")
            return self

    family = "attention"

    def student_taps(self) -> tuple[str, ...]:
        """The student's queries, keys and values."""
        return tuple(self._options.student_taps)

    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's queries, keys and values."""
        return tuple(self._options.teacher_taps)

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check that both sides hold as many tokens, and that the widths split into the heads.

        Raises:
            MismatchError: taps of another shape, other numbers of tokens, or a width that the heads do not divide.
        """
        assert teacher is not None
        heads = self._options.heads
        for side, outputs, taps in (
            ("student", student, self._options.student_taps),
            ("teacher", teacher, self._options.teacher_taps),
        ):
            shapes = [tuple(outputs.taps[tap].shape) for tap in taps]
            if any(len(shape) != 3 or shape != shapes[0] for shape in shapes):
                raise MismatchError(
                    f"minilm needs {side} taps of shape (B, N, 3D), or three of one shape (B, N, D), got"
                    f" {dict(zip(taps, shapes, strict=True))}. Tap the layer that computes queries, keys and values."
                )
            parts = heads * (3 if len(taps) == 1 else 1)
            if shapes[0][2] % parts:
                raise MismatchError(
                    f"minilm cannot split {side} tap '{taps[0]}' of shape {shapes[0]} into {parts} parts"
                    f" ({heads} heads). Choose heads that divide the widths of both networks."
                )
        one, other = (outputs.taps[taps[0]] for outputs, taps in self._sides(student, teacher))
        if one.shape[1] != other.shape[1]:
            raise MismatchError(
                f"minilm cannot join student tap '{self._options.student_taps[0]}' of shape {tuple(one.shape)} and"
                f" teacher tap '{self._options.teacher_taps[0]}' of shape {tuple(other.shape)}: the numbers of tokens"
                " differ. Give both networks the same patch size, input size and extra tokens."
            )

    def forward(self, step: Step) -> Tensor:
        """The sum over the kinds of relation of one step."""
        ours, theirs = (_parts(outputs.taps, taps) for outputs, taps in self._sides(step.student, step.teacher))
        return minilm(ours, theirs, heads=self._options.heads, relations=self._options.relations)

    def _sides(self, student: Outputs, teacher: Outputs) -> list[tuple[Outputs, list[str]]]:
        return [(student, self._options.student_taps), (teacher, self._options.teacher_taps)]

    @property
    def _options(self) -> Options:
        return cast(MiniLM.Options, self.options)


def _parts(found: Mapping[str, Tensor], taps: Sequence[str]) -> Sequence[Tensor]:
    """Queries, keys and values, each (B, N, D)."""
    return found[taps[0]].chunk(3, dim=-1) if len(taps) == 1 else [found[tap] for tap in taps]


def _log_relation(left: Tensor, right: Tensor) -> Tensor:
    """(B, heads, N, d) twice to logarithms of probabilities, (B, heads, N, N)."""
    return F.log_softmax(left @ right.transpose(-2, -1) / math.sqrt(left.shape[-1]), dim=-1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1).mean()
