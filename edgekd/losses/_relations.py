"""What the losses on relations between samples share: embeddings, unit vectors, and one pair of taps."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from edgekd import spec
from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._gather import gathered

__all__ = ["Relation", "check_taps", "embedding", "full_precision", "unit"]

_SHAPES = {2: "(B, D)", 3: "(B, N, D)", 4: "(B, C, H, W)"}
_NO_DIRECTION = 1e-24  # squared length below which a vector counts as zero


class Relation(Loss):
    """A loss on the relations between the samples of a batch, seen by one student tap and one teacher tap.

    Relations are numbers between samples, so the two taps may have different sizes and no connector is needed. With
    several processes the samples of all of them are compared.
    """

    class Options(spec.Options):
        """Options of a relation between two taps."""

        student_tap: str = Field(description="the student's module whose output is compared")
        teacher_tap: str = Field(description="the teacher's module whose output is compared")
        pool: bool = Field(True, description="average over positions or tokens; false flattens them")

    family = "relation"
    batchwise = True

    def student_taps(self) -> tuple[str, ...]:
        """The student's layer."""
        return (self._pair.student_tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's layer."""
        return (self._pair.teacher_tap,)

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check that both taps hold one embedding for each sample.

        Raises:
            MismatchError: a tap that is not (B, D), (B, N, D) or (B, C, H, W).
        """
        assert teacher is not None
        name = type(self).__module__.rpartition(".")[2]
        check_taps(name, (self._pair.student_tap, student), (self._pair.teacher_tap, teacher))

    def embeddings(self, step: Step) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's embeddings of the whole batch, shapes (B, D) and (B, E)."""
        ours = embedding(step.student.taps[self._pair.student_tap], pool=self._pair.pool)
        theirs = embedding(step.teacher.taps[self._pair.teacher_tap].detach(), pool=self._pair.pool)
        return gathered(ours), gathered(theirs)

    @property
    def _pair(self) -> Options:
        return cast(Relation.Options, self.options)


def embedding(tap: Tensor, *, pool: bool) -> Tensor:
    """One vector for each sample.

    Args:
        tap: shape (B, D), (B, N, D) or (B, C, H, W).
        pool: average over N or over H and W; otherwise every value of the sample is one entry of the vector.

    Returns:
        float32, shape (B, D).
    """
    values = float32(tap)
    if values.dim() == 2 or not pool:
        return values.flatten(1)
    return values.mean(dim=1 if values.dim() == 3 else (2, 3))


def check_taps(loss: str, student: tuple[str, Outputs], teacher: tuple[str, Outputs]) -> None:
    """Both taps must hold one embedding for each sample.

    Raises:
        MismatchError: a tap of another number of dimensions; both taps are named.
    """
    (ours, one), (theirs, other) = student, teacher
    shapes = tuple(one.taps[ours].shape), tuple(other.taps[theirs].shape)
    if any(len(shape) not in _SHAPES for shape in shapes):
        raise MismatchError(
            f"{loss} needs taps of shape {', '.join(_SHAPES.values())}: student '{ours}' has {shapes[0]}, teacher"
            f" '{theirs}' has {shapes[1]}. Tap layers that give one of these."
        )


def unit(vectors: Tensor) -> Tensor:
    """The vectors of the last dimension scaled to length one.

    A zero vector has no direction: it stays zero and gets no gradient. Dividing by a small constant instead would
    hand it a gradient of that constant's inverse, 1e12, and one dead sample would decide the whole step.
    """
    squares = vectors.pow(2).sum(dim=-1, keepdim=True)
    directed = squares > _NO_DIRECTION
    return vectors * torch.where(directed, squares, 1.0).rsqrt() * directed


def full_precision(values: Tensor) -> torch.autocast:
    """No autocast inside: it would run the products of float32 tensors in half precision."""
    return torch.autocast(values.device.type, enabled=False)
