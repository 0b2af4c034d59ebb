"""A student made out of the teacher: fewer of its channels, fewer of its blocks, with its weights."""

from __future__ import annotations

import copy
from typing import cast

from pydantic import Field
from torch import Tensor, nn

from edgekd import spec
from edgekd.errors import UsageError
from edgekd.models._base import ModelFactory
from edgekd.models._narrower import narrow
from edgekd.models._shorter import shorten

__all__ = ["FromTeacher"]


class FromTeacher(ModelFactory):
    """Takes blocks out of a copy of the trained teacher by `depth`, then channels by `width`, and keeps its weights.

    Depth is a choice of layers: of every list of equal blocks (those of a transformer, the stages of a residual
    network) an even share stays. Width is structured pruning through the library `torch-pruning` (extra `pruning`): of
    every layer the channels with the largest weights stay, a multiple of 8, and of attention a share of its heads.

    What stays starts from the teacher's weights, the same for every seed: repeats differ by their batches alone, and
    peers of one method start as equals. Taps are those of the teacher's family; blocks are numbered anew.

    Reference: Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning", 2023, arXiv:2301.12900 (width);
    Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020, arXiv:1909.10351 (which layers).
    """

    needs_teacher_network = True

    class Options(spec.Options):
        """Options of `from_teacher`."""

        width: float = Field(1.0, gt=0.0, le=1.0, description="share of each layer's channels that stays")
        depth: float = Field(1.0, gt=0.0, le=1.0, description="share of each list of equal blocks that stays")

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """Not possible without the teacher; see `derive`."""
        raise UsageError(
            "Model 'from_teacher' is made out of the recipe's teacher: it can only be a student or assistant."
        )

    def derive(self, teacher: nn.Module, example: Tensor) -> nn.Module:
        """A smaller copy of the teacher.

        Raises:
            UsageError: nothing can be, or is to be, taken out of it.
            BackendMissing: a width, and torch-pruning is not installed.
        """
        options = cast(FromTeacher.Options, self.options)
        if options.width == options.depth == 1.0:
            raise UsageError(
                "Model 'from_teacher' takes nothing out: set width or depth below 1. For the teacher itself name its"
                " model and set weights = 'teacher'."
            )
        network = copy.deepcopy(teacher).eval().requires_grad_(True)
        if options.depth < 1:
            shorten(network, example, options.depth)
        if options.width < 1:
            narrow(network, example, options.width)
        return network.train()
