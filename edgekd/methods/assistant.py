"""A chain of assistants between a large teacher and a small student: each learns from the one before, or from all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from edgekd import spec
from edgekd.losses._base import Outputs
from edgekd.methods._panel import given_shares
from edgekd.methods._taught import Taught

__all__ = ["Assistant"]


class Assistant(Taught):
    """Learn from the last of a chain of teachers, each larger than the next, or from all of them.

    The recipe's `[[assistants]]` are the chain after `[teacher]`. Each is trained by this method from those before it,
    as a stage with an artifact of its own; then the student is. Densely guided, everyone learns from all before it,
    and at every step some of them are left out at random, which keeps the student from leaning on their agreement.

    Densely guided, the sum over teachers of the paper is a mean here: it does not outweigh the labels the more the
    longer the chain is.

    Reference: Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh, "Improved Knowledge Distillation via Teacher
    Assistant", 2019, arXiv:1902.03393; densely guided: Son, Na, Choi, Hwang, "Densely Guided Knowledge Distillation
    using Multiple Teacher Assistants", 2020, arXiv:2009.08825, equations 6 and 7.
    """

    class Options(spec.Options):
        """Options of `assistant`."""

        dense: bool = Field(False, description="learn from the teacher and every assistant, not from the last alone")
        drop: float = Field(0.25, ge=0.0, lt=1.0, description="dense: probability of leaving one out of a step")

    def _shares(self, teachers: Sequence[Outputs], labels: Tensor) -> Tensor:
        """All for the last teacher, or even ones for those that take part in this step."""
        options, count = cast(Assistant.Options, self.options), len(teachers)
        kept = torch.zeros(count)
        kept[-1] = 1.0
        if options.dense:
            drawn = torch.rand(count) if self.training else torch.ones(count)
            # the last always stays, so that there is somebody to learn from
            kept = ((drawn >= options.drop) | (kept > 0)).float()
        return given_shares(kept.tolist(), labels)
