"""Heads on shared layers (CLNN) or separate networks (KDCL) that learn from what they agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from edgekd import spec
from edgekd.errors import UsageError
from edgekd.losses._base import Outputs
from edgekd.methods._agreed import best_mix, lowest_logits, mean_of_others, smallest_loss
from edgekd.methods._base import Batch, Term
from edgekd.methods._observe import example_outputs, observe, with_taps
from edgekd.methods._tail import branches_of, with_tail
from edgekd.methods._together import Together, same_classes
from edgekd.taps import Tapped, TupleOutputs, tapped

__all__ = ["Collaborative", "views"]


class Collaborative(Together):
    """Train several classifiers at once, each from the labels and from what all of them, or all others, agree on.

    They are heads of one network (`students = "heads"`): each has layers of its own behind a tap, the student's being
    the first head, and the gradient that reaches the shared layers is divided by their number H, so that these learn at
    the rate of the rest. Or they are networks of their own (`"peers"`); where a batch holds two views of its samples,
    they see the first and the second in turn, and where it does not, all see the same.

    Losses on the labels train each; those that need a teacher have for one, without gradient, by `target`:
    `others_mean`, the mean of the others' logits (CLNN); `min_loss`, for each sample the logits of the one with the
    smallest cross-entropy (KDCL-Naive); `best_mix`, for each sample the weighted mean of all with the smallest
    cross-entropy (KDCL-Linear); `min_logit`, for each class the lowest logit counted from the label's (KDCL-MinLogit).
    KDCL-General weighs networks by their errors on held-out samples, which a method does not see: it is not built.
    What they agree on has no layers to compare: losses on features are left out.

    The papers' losses are cross_entropy and kd with tau 2; CLNN weighs both 0.5 and does not scale kd by tau^2. Much
    more weight on kd makes untrained classifiers agree before they have learned anything.

    Any of the classifiers can be shipped, a head with the shared layers. While an int8 student is trained, the others
    are float copies of the student that it was made from, and it alone is shipped.

    Reference: Song, Chai, "Collaborative Learning for Deep Neural Networks", 2018, arXiv:1805.11761, sections 3.2 and
    3.3; Guo, Wang, Wu, Yu, Liang, Hu, Luo, "Online Knowledge Distillation via Collaborative Learning", CVPR 2020.
    """

    class Options(spec.Options):
        """Options of `collaborative`."""

        students: Literal["peers", "heads"] = Field("peers", description="networks of their own, or heads of one")
        student_tap: str | None = Field(None, description="heads: the last module that all of them share")
        others: int = Field(2, ge=1, le=8, description="heads or networks beside the student's own")
        target: Literal["others_mean", "min_loss", "min_logit", "best_mix"] = Field(
            "others_mean", description="what each learns from; all but others_mean look at the labels"
        )

        @model_validator(mode="after")
        def _together(self) -> Self:
            if (self.students == "heads") != (self.student_tap is not None):
                raise ValueError("students = 'heads' and student_tap belong together")
            return self

    reads_taps = False
    _networks: tuple[Tapped | TupleOutputs, ...]

    @classmethod
    def student_taps(cls, options: spec.Options) -> tuple[str, ...]:
        """The features that the further heads read."""
        tap = cast(Collaborative.Options, options).student_tap
        return () if tap is None else (tap,)

    def prepare(self, example: Tensor) -> None:
        """Build the further heads or networks.

        Args:
            example: inputs, shape (B, C, H, W).

        Raises:
            UsageError: no way to build a network, a target that needs labels on data without, a tap that is not there,
                or a network that cannot be traced.
            MismatchError: other classes, or a tap that does not cut the network in two.
        """
        options, split = self._options, self.context.split
        if options.target != "others_mean" and split is not None and not split.labelled:
            raise UsageError(f"target = '{options.target}' needs labels, but the training split has samples without.")
        taps = type(self).student_taps(options)
        shared = with_taps(self.student, [term.loss for term in self.losses], side="student", more=taps)
        outputs = [example_outputs(shared, example)]
        peers = self._peers(options.others, example)
        # a plain attribute holding modules would register them a second time: a tuple does not
        if options.student_tap is not None:
            self.others.extend(branches_of(peers, options.student_tap, student=outputs[0], example=example))
            self._networks = (shared,)
            outputs += [Outputs(outputs[0].logits)] * options.others
        else:
            self.others.extend(peers)
            self._networks = (shared, *(tapped(peer, ()) for peer in peers))
            outputs += [example_outputs(network, example) for network in self._networks[1:]]
        same_classes(self._names, outputs)
        self._enrol(self._names, outputs, outputs, [[own] for own in range(len(outputs))])

    def start_epoch(self, epoch: int) -> None:
        """Forget how the last epoch's batches were made."""
        self._two_views: bool | None = None

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every head or network, by name."""
        count = 1 + len(self.others)
        if self._options.student_tap is not None:
            batches, outputs = [batch] * count, self._heads(batch)
        else:
            if self._two_views is None:
                # asked once an epoch: on an accelerator the answer has to be waited for
                self._two_views = views(batch) is not None
            seen = (views(batch) if self._two_views else None) or (batch,)
            batches = [seen[index % len(seen)] for index in range(count)]
            outputs = [observe(one, part.inputs) for one, part in zip(self._networks, batches, strict=True)]
        targets = self._targets([one.logits for one in outputs], [part.labels for part in batches])
        return self._terms(batches, outputs, [Outputs(target) for target in targets])

    def _heads(self, batch: Batch) -> list[Outputs]:
        """The student's outputs, with gradient that is divided by the number of heads at the tap, and the heads'."""
        student = observe(self._networks[0], batch.inputs)
        features = student.taps[str(self._options.student_tap)]
        count = 1 + len(self.others)
        if features.requires_grad:
            features.register_hook(lambda gradient: gradient / count)  # type: ignore[no-untyped-call]  # torch has no types
        # a copy for each: a head may begin with an operation in place
        return [student, *(Outputs(head(features.clone())) for head in self.others)]

    def _targets(self, logits: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """What each learns from, without gradient."""
        if self._options.target == "others_mean":
            return mean_of_others(logits)
        agree = {"min_loss": smallest_loss, "min_logit": lowest_logits, "best_mix": best_mix}[self._options.target]
        return [agree(logits, labels)] * len(logits)

    def candidates(self) -> Mapping[str, nn.Module]:
        """The student and, in float training, the others: `head1` or `peer1`, ..."""
        if not self.floating:
            return super().candidates()
        heads = self._options.students == "heads"
        others = [with_tail(self.student, one) if heads else one for one in self.others]
        return dict(zip(self._names, (self.student, *others), strict=True))

    @property
    def _names(self) -> list[str]:
        kind = self._options.students.removesuffix("s")
        return ["student", *(f"{kind}{number}" for number in range(1, 1 + self._options.others))]

    @property
    def _options(self) -> Options:
        return cast(Collaborative.Options, self.options)


def views(batch: Batch) -> tuple[Batch, Batch] | None:
    """The two halves of a batch that holds two views of the same samples; None if it does not.

    Args:
        batch: the ids of its second half are those of its first, in the same order, if it does.
    """
    half = len(batch.ids) // 2
    if half == 0 or 2 * half != len(batch.ids) or not torch.equal(batch.ids[:half], batch.ids[half:]):
        return None
    first, second = (
        replace(batch, inputs=batch.inputs[part], labels=batch.labels[part], ids=batch.ids[part])
        for part in (slice(None, half), slice(half, None))
    )
    return first, second
