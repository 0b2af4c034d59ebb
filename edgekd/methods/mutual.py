"""The student and its peers, trained at once, teach each other (deep mutual learning)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from pydantic import Field
from torch import Tensor, nn

from edgekd import spec
from edgekd.methods._base import Batch, Term
from edgekd.methods._observe import example_outputs, observe, with_taps
from edgekd.methods._together import Together, detached, same_classes

__all__ = ["Mutual"]


class Mutual(Together):
    """Train several networks like the student at once; each learns from the labels and from every other one.

    The loss of network i of K is that of the labels plus the mean over the others j of KL(p_j || p_i): with the
    recipe's losses, cross_entropy and kd with tau 1, both of weight 1; much more weight on kd makes untrained networks
    agree before they have learned anything. Losses on features compare the student's tap in one network with the
    teacher's tap in the other. All networks take their step from the same forward; in the paper one network takes its
    step before the next looks at it.

    Any of the networks can be shipped; the recipe says which, and else it is the best on validation. While an int8
    student is trained, its peers are float copies of the student that it was made from, and it alone is shipped. Its
    graph has only the taps that losses read on the student's side: what a peer would learn from another tap of the
    int8 student is left out.

    Reference: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", 2017, arXiv:1706.00384, equations 4 to 7.
    """

    class Options(spec.Options):
        """Options of `mutual`."""

        peers: int = Field(1, ge=1, le=8, description="networks that are trained beside the student")

    def prepare(self, example: Tensor) -> None:
        """Build the peers, check that all give the same classes, and build the connectors of every pair.

        Args:
            example: inputs, shape (B, C, H, W).

        Raises:
            UsageError: no way to build a peer, or a tap that is not there.
            MismatchError: a peer with other classes, or taps that cannot be joined.
        """
        self.others.extend(self._peers(cast(Mutual.Options, self.options).peers, example))
        losses = [term.loss for term in self.losses]
        taught = [name for loss in losses for name in loss.teacher_taps()]
        # a plain attribute holding modules would register them a second time: a tuple does not
        self._networks = (
            with_taps(self.student, losses, side="student", more=taught if self.floating else ()),
            *(with_taps(peer, losses, side="student", more=taught) for peer in self.others),
        )
        outputs = [example_outputs(network, example) for network in self._networks]
        same_classes(self._names, outputs)
        everybody = range(len(outputs))
        self._enrol(self._names, outputs, outputs, [[one for one in everybody if one != own] for own in everybody])

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The terms of every network, by name."""
        outputs = [observe(network, batch.inputs) for network in self._networks]
        return self._terms([batch] * len(outputs), outputs, [detached(one) for one in outputs])

    def candidates(self) -> Mapping[str, nn.Module]:
        """The student and, in float training, its peers: `peer1`, ..."""
        return (
            dict(zip(self._names, (self.student, *self.others), strict=True)) if self.floating else super().candidates()
        )

    @property
    def _names(self) -> list[str]:
        return ["student", *(f"peer{number}" for number in range(1, len(self.others) + 1))]
