"""The student answers alike for two samples of the same class (CS-KD)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekd.errors import UsageError
from edgekd.methods._base import Batch, Term
from edgekd.methods._observe import observe
from edgekd.methods._self_taught import SelfTaught, halves

__all__ = ["ClassPairs"]


class ClassPairs(SelfTaught):
    """Let the student's answer for another sample of the same class teach it.

    Batches are sampled by `same_class`: the second half are partners of the first. Only the first half is learned, as
    published: losses that need no teacher learn its labels, those that need one compare it with the partners, whose
    logits carry no gradient. The two halves go through the network one after the other. Every sample is in a first
    half once an epoch.

    Reference: Yun, Park, Lee, Shin, "Regularizing Class-wise Predictions via Self-knowledge Distillation", 2020,
    arXiv:2003.13964, section 2: `cross_entropy` with weight 1, `kd` with weight 1 and tau 4.
    """

    sampling = "same_class"

    def prepare(self, example: Tensor) -> None:
        """See `SelfTaught.prepare`.

        Raises:
            UsageError: samples without labels.
        """
        split = self.context.split
        if split is not None and not split.labelled:
            raise UsageError(
                "class_pairs needs the labels of all samples, but the training split has samples without. Label them,"
                " or use another method."
            )
        super().prepare(example)

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every loss, by name.

        Raises:
            UsageError: the two halves of the batch do not have the same labels.
        """
        own, partners = halves(batch)
        if not torch.equal(own.labels, partners.labels):
            raise UsageError(
                "class_pairs needs the classes of a batch's first half again, in the same order, in its second half."
                " Give it batches of pairs (sampling 'same_class'); with several processes, set train.batch_size to a"
                " multiple of twice their number."
            )
        student = observe(self._networks[0], own.inputs)
        # after the pass that is learned from: autocast would keep weights without gradient from one before it
        with torch.no_grad():
            partner = observe(self._networks[0], partners.inputs)
        step = self._step(own, student, partner)
        return {term.name: Term(term.loss(step), term.weight) for term in self.losses}
