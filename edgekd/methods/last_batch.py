"""The student agrees with what it said about half of the batch one step before (DLB)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from edgekd.errors import UsageError
from edgekd.losses._base import Outputs
from edgekd.methods._base import Batch, Term
from edgekd.methods._observe import observe
from edgekd.methods._self_taught import SelfTaught, rows_of

__all__ = ["LastBatch"]


class LastBatch(SelfTaught):
    """Let the student's answers of the last step teach it on the samples that come again in this one.

    Batches are sampled by `repeat_half`: half of each are the last one's new samples, changed in the same way. Losses
    that need no teacher learn the labels of the whole batch; those that need one see the repeated samples, with the
    logits of one step before as the teacher's. Samples are found by their ids. The first step of an epoch repeats
    nothing, and has the labels alone; its other terms are 0.

    Reference: Shen, Xu, Yang, Li, Guo, "Self-Distillation from the Last Mini-Batch for Consistency Regularization",
    2022, arXiv:2203.16172, section 3: `cross_entropy` with weight 1, `kd` with weight 1 and tau 3.
    """

    sampling = "repeat_half"

    def prepare(self, example: Tensor) -> None:
        """See `SelfTaught.prepare`."""
        super().prepare(example)
        self._last: tuple[Tensor, Tensor] | None = None

    def start_epoch(self, epoch: int) -> None:
        """Forget the last epoch's end, as an interrupted run would."""
        # no buffers: several processes would be given the first one's, and each has samples of its own
        self._last = None

    def between_steps(self) -> dict[str, Tensor]:
        """The last batch and what the student said to it."""
        return {} if self._last is None else {"ids": self._last[0], "logits": self._last[1]}

    def go_on(self, carried: Mapping[str, Tensor]) -> None:
        """See `between_steps`."""
        device = next(self.student.parameters()).device
        self._last = (carried["ids"].to(device), carried["logits"].to(device)) if carried else None

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every loss, by name.

        Raises:
            UsageError: no sample of the last batch is in this one.
        """
        outputs = observe(self._networks[0], batch.inputs)
        step = self._step(batch, outputs)
        terms = {term.name: Term(term.loss(step), term.weight) for term in self.label_losses}
        zero = torch.zeros((), device=outputs.logits.device)
        terms |= {term.name: Term(zero, term.weight) for term in self.answer_losses}
        if self._last is not None:
            rows, before = self._repeated(batch.ids, *self._last)
            again = replace(batch, labels=batch.labels[rows], ids=batch.ids[rows])
            step = self._step(again, rows_of(outputs, rows), Outputs(before))
            terms |= {term.name: Term(term.loss(step), term.weight) for term in self.answer_losses}
        self._last = (batch.ids, outputs.logits.detach())
        return terms

    def _repeated(self, ids: Tensor, last_ids: Tensor, last_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows of this batch were in the last one, and the logits that they had there."""
        same = ids[:, None] == last_ids[None, :]
        rows = same.any(dim=1).nonzero()[:, 0]
        if len(rows) == 0:
            raise UsageError(
                "last_batch found no sample of the last batch in this one. Give it batches that repeat half of the"
                " last one (sampling 'repeat_half'); with several processes, set train.batch_size to a multiple of"
                " twice their number."
            )
        return rows, last_logits[same[rows].int().argmax(dim=1)]
