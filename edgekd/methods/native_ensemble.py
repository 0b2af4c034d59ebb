"""Branches that share the student's first layers, and learn from a gated ensemble of themselves (ONE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from edgekd import spec
from edgekd.errors import MismatchError, UsageError
from edgekd.losses._base import Outputs, float32
from edgekd.methods._base import Batch, Context, Term, WeightedLoss
from edgekd.methods._observe import check_classes, example_outputs, observe, with_taps
from edgekd.methods._tail import branches_of, with_tail
from edgekd.methods._together import Together, detached

__all__ = ["NativeEnsemble"]


class NativeEnsemble(Together):
    """Grow further branches on the student, and let the ensemble of all branches teach each.

    Branches share the student's layers up to a tap; behind it each has layers of its own, the student's being the
    first branch. A gate, a linear layer and a softmax on the tap's pooled features, mixes their logits into the
    ensemble's: z_e = sum_i g_i z_i. Losses on the labels train every branch and the ensemble with its gate; losses that
    need a teacher have the ensemble for one, without gradient. The paper's are cross_entropy and kd with tau 3, both of
    weight 1; much more weight on kd makes untrained branches agree before they have learned anything. An ensemble has
    no layers to compare: losses on features are left out.

    The exported student is the first branch. In float training any other can be shipped as well: the shared layers
    with that branch's own. While an int8 student is trained, its graph is the first branch and the others are float
    ones, copied from the student that it was made from.

    The paper's gate also has a batch normalisation and a ReLU before the softmax. They are left out here: a ReLU
    gives equal shares to all branches below zero, and a normalisation needs large batches. The gate starts with
    equal shares.

    Reference: Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", 2018, arXiv:1806.04606,
    section 3.
    """

    class Options(spec.Options):
        """Options of `native_ensemble`."""

        student_tap: str = Field(description="the last module that all branches share")
        branches: int = Field(2, ge=1, le=8, description="branches beside the student's own")

    reads_taps = False
    gate: nn.Linear

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        losses: Sequence[WeightedLoss],
        options: spec.Options | None = None,
        context: Context | None = None,
    ) -> None:
        super().__init__(student, teachers, losses, options, context)
        if all(term.loss.needs_teacher or term.loss.student_taps() for term in self.losses):
            names = ", ".join(term.name for term in losses)
            raise UsageError(
                f"Method 'native_ensemble' needs a loss on logits that works without a teacher, got: {names}. The"
                " ensemble learns from nothing else. Add cross_entropy."
            )

    @classmethod
    def student_taps(cls, options: spec.Options) -> tuple[str, ...]:
        """The features that the further branches and the gate read."""
        return (cast(NativeEnsemble.Options, options).student_tap,)

    def prepare(self, example: Tensor) -> None:
        """Build the branches and the gate.

        Args:
            example: inputs, shape (B, C, H, W).

        Raises:
            UsageError: no way to build a branch, a tap that is not there, or a network that cannot be traced.
            MismatchError: the tap does not cut the network in two, or its features cannot be pooled.
        """
        losses, options = [term.loss for term in self.losses], self._options
        # a plain attribute holding modules would register them a second time: a tuple does not
        self._networks = (with_taps(self.student, losses, side="student", more=(options.student_tap,)),)
        student = example_outputs(self._networks[0], example)
        features, count = student.taps[options.student_tap], 1 + options.branches
        peers = self._peers(options.branches, example)
        self.others.extend(branches_of(peers, options.student_tap, student=student, example=example))
        self.gate = nn.Linear(pooled(features, options.student_tap).shape[1], count)
        for parameter in self.gate.parameters():
            nn.init.zeros_(parameter)
        self.gate.to(example.device)
        check_classes(student, [])
        plain = Outputs(student.logits)  # a branch's and the ensemble's have the same shape, and no taps
        learners = [student, *[plain] * options.branches, plain]
        self._enrol([*self._names, "ensemble"], learners, [plain], [*[[0]] * count, []])

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every branch and of the ensemble, by name."""
        student = observe(self._networks[0], batch.inputs)
        features = student.taps[self._options.student_tap]
        # a copy for each: a branch may begin with an operation in place
        branches = [student, *(Outputs(branch(features.clone())) for branch in self.others)]
        ensemble = Outputs(self.mixed(features, [one.logits for one in branches]))
        return self._terms([batch] * (1 + len(branches)), [*branches, ensemble], [detached(ensemble)])

    def mixed(self, features: Tensor, logits: Sequence[Tensor]) -> Tensor:
        """The ensemble's logits: those of the branches, weighted by the gate; float32, shape (B, K).

        Args:
            features: the tap's output, batch first.
            logits: of every branch, each (B, K).
        """
        shares = torch.softmax(float32(self.gate(pooled(features, self._options.student_tap))), dim=1)
        return (shares.unsqueeze(2) * torch.stack([float32(one) for one in logits], dim=1)).sum(dim=1)

    def trained(self) -> tuple[nn.Module, ...]:
        """The student, the further branches, and the gate."""
        return (*super().trained(), self.gate)

    def candidates(self) -> Mapping[str, nn.Module]:
        """The student and, in float training, the student with another branch's layers: `branch1`, ..."""
        if not self.floating:
            return super().candidates()
        return {
            "student": self.student,
            **{name: with_tail(self.student, one) for name, one in zip(self._names[1:], self.others, strict=True)},
        }

    @property
    def _names(self) -> list[str]:
        return ["student", *(f"branch{number}" for number in range(1, 1 + self._options.branches))]

    @property
    def _options(self) -> Options:
        return cast(NativeEnsemble.Options, self.options)


def pooled(features: Tensor, tap: str) -> Tensor:
    """Features averaged over their positions, shape (B, D).

    Args:
        features: (B, D), tokens (B, N, D) or a map (B, D, H, W).
        tap: its name, for the message.

    Raises:
        MismatchError: another number of dimensions.
    """
    if features.dim() not in (2, 3, 4):
        raise MismatchError(
            f"native_ensemble needs features of shape (B, D), (B, N, D) or (B, D, H, W), but tap '{tap}' gives"
            f" {tuple(features.shape)}. Tap another module."
        )
    if features.dim() == 4:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.dim() == 3 else features
