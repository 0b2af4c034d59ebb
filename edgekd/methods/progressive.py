"""The labels are softened, more with every epoch, by what the student said an epoch before (PS-KD)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from edgekd import spec
from edgekd.losses._base import Outputs
from edgekd.methods._base import Batch, Term
from edgekd.methods._observe import observe
from edgekd.methods._self_taught import SelfTaught, even_shares
from edgekd.taps import Tapped, TupleOutputs

__all__ = ["Progressive"]


class Progressive(SelfTaught):
    """Learn (1 - alpha_e) labels + alpha_e (the answers of the student as it was at the end of the last epoch).

    alpha_e grows linearly, from 0 in the first epoch, which has no student before it, to `alpha` in the last. The two
    groups of the recipe's losses count by alpha_e: within each, their weights are scaled to sum to one. With
    `cross_entropy` and `kd` at tau 1 the gradient is that of the paper's soft target: cross-entropy is linear in it,
    and KL differs from it by the old answers' entropy, which is constant.

    The earlier student is kept whole and sees the same augmented batch. Its stored probabilities, as published, were
    those of other crops and mixtures of the images; they also came from the middle of the epoch, each sample's from
    another step. The price is a forward pass without gradient.

    Reference: Kim, Ji, Yoon, Hwang, "Self-Knowledge Distillation with Progressive Refinement of Targets", 2020,
    arXiv:2006.12000: alpha 0.8.
    """

    class Options(spec.Options):
        """Options of `progressive`."""

        alpha: float = Field(0.8, ge=0.0, le=1.0, description="share of the earlier student's answers at the end")

    def prepare(self, example: Tensor) -> None:
        """See `SelfTaught.prepare`."""
        super().prepare(example)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Keep the student as it is now; after a resume it is as it was at the end of the last epoch."""
        self._share: float | None = None
        # in a tuple it is no part of this module: an interrupted run makes the same copy again
        self._earlier: tuple[Tapped | TupleOutputs, ...] = ()
        if epoch > 0:
            earlier = copy.deepcopy(self._networks[0]).requires_grad_(False)
            if isinstance(earlier, Tapped):
                earlier.eval()  # an exported graph refuses it, and has no modes
            self._earlier = (earlier,)

    def between_steps(self) -> dict[str, Tensor]:
        """The weights of the last epoch's end, and how much they count in this one."""
        if not self._earlier:
            return {}
        share = {} if self._share is None else {"share": torch.tensor(self._share, dtype=torch.float64)}
        return {**share, **{f"earlier.{name}": value for name, value in self._earlier[0].state_dict().items()}}

    def go_on(self, carried: Mapping[str, Tensor]) -> None:
        """See `between_steps`."""
        if not self._earlier:
            return
        start = "earlier."
        earlier = {name.removeprefix(start): value for name, value in carried.items() if name.startswith(start)}
        self._earlier[0].load_state_dict(earlier)
        self._share = float(carried["share"]) if "share" in carried else None

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every loss, by name."""
        share = self._alpha(batch)
        student = observe(self._networks[0], batch.inputs)
        step = self._step(batch, student)
        terms = {term.name: Term(term.loss(step), (1 - share) * term.weight) for term in even_shares(self.label_losses)}
        answers = even_shares(self.answer_losses)
        if not self._earlier:
            zero = torch.zeros((), device=student.logits.device)
            return terms | {term.name: Term(zero, 0.0) for term in answers}
        step = self._step(batch, student, self._before(batch.inputs))
        return terms | {term.name: Term(term.loss(step), share * term.weight) for term in answers}

    def _alpha(self, batch: Batch) -> float:
        """alpha (e + 1) / E in epoch e of E, counted from 0; the same in every step of an epoch."""
        if not self._earlier:
            return 0.0
        if self._share is None:
            # at an epoch's first step the training is done by e / E
            part = batch.progress * (batch.epoch + 1) / max(batch.epoch, 1)
            self._share = cast(Progressive.Options, self.options).alpha * min(1.0, part)
        return self._share

    def _before(self, inputs: Tensor) -> Outputs:
        with torch.no_grad():
            return observe(self._earlier[0], inputs)
