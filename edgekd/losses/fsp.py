"""Match how features flow from one layer to a later one (FSP matrices)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._pairs import PairOptions
from edgekd.losses._relations import full_precision
from edgekd.losses._widened import widened

__all__ = ["FSP", "fsp"]

Pair = tuple[Tensor, Tensor]


def fsp(student: Pair, teacher: Pair) -> Tensor:
    """Mean squared difference of two FSP matrices, over the batch and over their entries.

    The matrix of a sample holds, for every channel of the earlier layer and every channel of the later one, the mean
    over positions of their product. The larger of the two maps is max-pooled to the smaller, as in the paper.

    Equation 2 sums over the entries; their mean is what the published weight of 50 (RepDistiller) belongs to, and it
    makes the weight independent of the layers' channels.

    Args:
        student: features of an earlier and a later layer, shapes (B, M, H, W) and (B, N, H', W').
        teacher: the same two layers, same M and N, any height and width; no gradient flows into them.

    Returns:
        Scalar, float32; grows with the fourth power of the features' scale.

    Reference: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and
    Transfer Learning", CVPR 2017, equations 1 and 2.

    >>> import torch
    >>> s = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 1.0]]]])  # (1 * 3 + 2 * 1) / 2 = 2.5
    >>> t = torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[2.0]]]])  # max(1, 1) * 2 = 2
    >>> fsp(s, t).item()  # 0.5^2
    0.25
    """
    with full_precision(student[0]):
        theirs = _flow(float32(teacher[0].detach()), float32(teacher[1].detach()))
        return F.mse_loss(_flow(float32(student[0]), float32(student[1])), theirs)


class FSP(Loss):
    """Learn the teacher's flow between consecutive layers; the published weight is 50.

    The paper trains on this loss alone to initialise the student, and then on labels alone. Here `until` says after
    which fraction of training the term is 0; other losses count from the start.
    """

    class Options(PairOptions):
        """Options of `fsp`."""

        student_taps: list[str] = Field(min_length=2, description="the student's layers, each flows into the next")
        teacher_taps: list[str] = Field(min_length=2, description="the teacher's layers, in the same order")
        until: float = Field(1.0, ge=0.0, le=1.0, description="fraction of training after which the term is 0")

    family = "relation"

    def student_taps(self) -> tuple[str, ...]:
        """The student's layers."""
        return tuple(self._options.student_taps)

    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's layers."""
        return tuple(self._options.teacher_taps)

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check that the layers are maps, and that both sides' matrices have the same size.

        Raises:
            MismatchError: a tap without height and width, or other channels; names the four taps.
        """
        assert teacher is not None
        for (first, second), (guide, next_guide) in self._steps():
            ours = {name: tuple(student.taps[name].shape) for name in (first, second)}
            theirs = {name: tuple(teacher.taps[name].shape) for name in (guide, next_guide)}
            named = (
                f"student '{first}' has {ours[first]} and '{second}' {ours[second]}, teacher '{guide}' has"
                f" {theirs[guide]} and '{next_guide}' {theirs[next_guide]}."
            )
            if any(len(shape) != 4 for shape in (*ours.values(), *theirs.values())):
                raise MismatchError(f"fsp needs taps of shape (B, C, H, W): {named} Tap layers before the pooling.")
            if (ours[first][1], ours[second][1]) != (theirs[guide][1], theirs[next_guide][1]):
                raise MismatchError(
                    f"fsp needs the same channels on both sides: {named} Tap layers whose channels agree, or use"
                    " similarity_preserving, which compares layers of any size."
                )

    def forward(self, step: Step) -> Tensor:
        """The sum over consecutive layers of one step."""
        ours = {name: widened(step.student.taps[name]) for name in self._options.student_taps}
        if step.progress >= self._options.until:
            return ours[self._options.student_taps[0]][:0].sum()  # 0, and still part of the graph
        theirs = step.teacher.taps
        terms = [
            fsp((ours[first], ours[second]), (theirs[guide], theirs[next_guide]))
            for (first, second), (guide, next_guide) in self._steps()
        ]
        return torch.stack(terms).sum()

    def _steps(self) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
        """Consecutive layers of the student beside those of the teacher."""
        return zip(pairwise(self._options.student_taps), pairwise(self._options.teacher_taps), strict=True)

    @property
    def _options(self) -> Options:
        return cast(FSP.Options, self.options)


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """The FSP matrices of a batch, shape (B, M, N)."""
    size = _smaller(first.shape[2:], second.shape[2:])
    rows, columns = (
        (one if tuple(one.shape[2:]) == size else F.adaptive_max_pool2d(one, size)).flatten(2)
        for one in (first, second)
    )
    return rows @ columns.transpose(1, 2) / rows.shape[2]


def _smaller(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    return min(one[0], other[0]), min(one[1], other[1])
