"""Match which samples of a batch activate a layer alike (similarity-preserving distillation)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._gather import gathered
from edgekd.losses._pairs import PairOptions
from edgekd.losses._relations import check_taps, full_precision, unit

__all__ = ["SimilarityPreserving", "similarity_preserving"]


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two similarity matrices, over B^2 entries.

    A layer's similarity matrix holds the products of every two samples' flattened activations; each row is scaled to
    length one. It is (B, B) whatever the layer's size, so no connector is needed. A sample without any activation has
    a row of zeros.

    Args:
        student: features, shape (B, ...).
        teacher: features, shape (B, ...), any size; no gradient flows into it.

    Returns:
        Scalar, float32, in [0, 4 / B]. It shrinks with B, as in equation 4; so does the published weight's effect.

    Reference: Tung, Mori, "Similarity-Preserving Knowledge Distillation", 2019, arXiv:1907.09682, equations 1 to 4.

    >>> import torch
    >>> s, t = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    >>> similarity_preserving(s, t).item()  # rows (1, 0), (0, 1) and (1, 0), (0, 0): 1 / 4
    0.25
    """
    with full_precision(student):
        return F.mse_loss(_similarities(float32(student)), _similarities(float32(teacher.detach())))


class SimilarityPreserving(Loss):
    """Learn the similarity of every two samples, layer pair by layer pair; published weight 3000.

    RepDistiller gives that weight to batches of 64 and one pair, the last layers before the pooling. Activations are
    flattened, never pooled. With several processes the samples of all of them are compared.
    """

    class Options(PairOptions):
        """Options of `similarity_preserving`."""

    family = "relation"
    batchwise = True

    def student_taps(self) -> tuple[str, ...]:
        """The student's layers."""
        return tuple(self._options.student_taps)

    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's layers."""
        return tuple(self._options.teacher_taps)

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check that every tap holds features of each sample.

        Raises:
            MismatchError: a tap that is not (B, D), (B, N, D) or (B, C, H, W).
        """
        assert teacher is not None
        for ours, theirs in self._tap_pairs():
            check_taps("similarity_preserving", (ours, student), (theirs, teacher))

    def forward(self, step: Step) -> Tensor:
        """The sum over the layer pairs of one step."""
        terms = [
            similarity_preserving(
                gathered(step.student.taps[ours].flatten(1)), gathered(step.teacher.taps[theirs].detach().flatten(1))
            )
            for ours, theirs in self._tap_pairs()
        ]
        return torch.stack(terms).sum()

    def _tap_pairs(self) -> list[tuple[str, str]]:
        return list(zip(self._options.student_taps, self._options.teacher_taps, strict=True))

    @property
    def _options(self) -> Options:
        return cast(SimilarityPreserving.Options, self.options)


def _similarities(features: Tensor) -> Tensor:
    # the scale of a layer is normalised away, so it is taken out first: rows hold fourth powers of activations
    rows = features.flatten(1)
    rows = rows / rows.detach().abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    return unit(rows @ rows.T)
