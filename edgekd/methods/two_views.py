"""The student answers alike for two augmented views of a sample (DDGSD)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from edgekd import spec
from edgekd.errors import UsageError
from edgekd.losses._base import Outputs, float32
from edgekd.methods._base import Batch, Term
from edgekd.methods._observe import observe
from edgekd.methods._self_taught import SelfTaught, halves, pooled, rows_of

__all__ = ["TwoViews", "mean_discrepancy"]


def mean_discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """Half the squared distance between the mean features of two views: MMD with a linear kernel.

    Args:
        first: shape (B, D).
        second: shape (B, D); gradient flows into both.

    Returns:
        Scalar, float32.

    Reference: Xu, Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019.

    >>> import torch
    >>> a, b = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    >>> mean_discrepancy(a, b).item()  # means (2, 1) and (0, 0): (4 + 1) / 2
    2.5
    """
    return 0.5 * (float32(first).mean(dim=0) - float32(second).mean(dim=0)).square().sum()


class TwoViews(SelfTaught):
    """Let each of two views of a sample teach the other, and keep their mean features together.

    Batches are sampled by `two_views`: the second half are the first half's samples, moved and cut by other random
    draws. So `data.augment` must do one of these (crop, flip, cutout), or both views are the same and teach nothing.
    Losses that need no teacher learn the labels of all rows; those that need one are the mean of both directions,
    the other view's logits without gradient as the teacher's. Where the paper sums over the two views, this takes the
    mean, so that a step is as large as with other methods: every term is half of the published one.

    Reference: Xu, Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019:
    `cross_entropy` with weight 1, `kd` with weight 1 and tau 3, features with 0.0005.
    """

    class Options(spec.Options):
        """Options of `two_views`."""

        features_tap: str | None = Field(
            None, description="the student's module whose mean features are kept together; none leaves the term out"
        )
        features_weight: float = Field(
            5e-4, ge=0.0, allow_inf_nan=False, description="mu of the paper: weight of the mean features' distance"
        )

    sampling = "two_views"

    @classmethod
    def student_taps(cls, options: spec.Options) -> tuple[str, ...]:
        """The features that are kept together."""
        tap = cast(TwoViews.Options, options).features_tap
        return () if tap is None else (tap,)

    def prepare(self, example: Tensor) -> None:
        """See `SelfTaught.prepare`.

        Raises:
            MismatchError: the tap gives neither vectors nor maps.
        """
        super().prepare(example)
        self._distance(self._example, self._example)

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every loss, by name, and `features`.

        Raises:
            UsageError: the second half of the batch are not the first half's samples.
        """
        own, other = halves(batch)
        if not torch.equal(own.ids, other.ids):
            raise UsageError(
                "two_views needs the samples of a batch's first half again, in the same order, in its second half."
                " Give it batches of two views (sampling 'two_views'); with several processes, set train.batch_size"
                " to a multiple of twice their number."
            )
        outputs = observe(self._networks[0], batch.inputs)
        step = self._step(batch, outputs)
        terms = {term.name: Term(term.loss(step), term.weight) for term in self.label_losses}
        first, second = rows_of(outputs, slice(None, len(own.ids))), rows_of(outputs, slice(len(own.ids), None))
        steps = (self._step(own, first, second), self._step(other, second, first))
        for term in self.answer_losses:
            terms[term.name] = Term(torch.stack([term.loss(step) for step in steps]).mean(), term.weight)
        distance = self._distance(first, second)
        if distance is not None:
            terms["features"] = Term(distance, cast(TwoViews.Options, self.options).features_weight)
        return terms

    def _distance(self, first: Outputs, second: Outputs) -> Tensor | None:
        tap = cast(TwoViews.Options, self.options).features_tap
        if tap is None:
            return None
        return mean_discrepancy(*(pooled(one.taps[tap], method=self.name, tap=tap) for one in (first, second)))
