"""Which layer is to blame: every fusion group's own error on the int8 grid, and what it does to the network.

Each group is looked at from both ends: it alone in int8, which shows its own error undisturbed, and it alone in float,
which shows what restoring it wins among all the other errors. Its output is a third case: codes between two int8
groups stay codes while either of them is int8, so a bad range is nobody's alone; it is found by leaving that one
tensor in float for all its readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgekd._sensitivity_model import EQUAL_DB, OUTPUT_DB, WEIGHT_DB, GroupSensitivity, Sensitivity
from edgekd._switching import Plan, Switchboard
from edgekd.errors import DataError, MismatchError
from edgekd.targets._base import Numerics
from edgekd.targets._groups import Group

__all__ = ["EQUAL_DB", "OUTPUT_DB", "WEIGHT_DB", "GroupSensitivity", "Labelled", "Sensitivity", "measure"]

Labelled = tuple[Tensor, Tensor | None]
"""Inputs (B, C, H, W) and their classes (B,), or None."""

_KEPT_VALUES, _MOST_SAMPLES = 1 << 25, 64
"""Activations kept at a time, 128 MiB of them, and samples at most."""


def measure(
    graph: GraphModule,
    batches: Iterable[Labelled],
    *,
    numerics: Numerics,
    progress: Callable[[int], None] | None = None,
) -> Sensitivity:
    """Measure every int8 group of a graph, in one pass over any number of samples.

    Memory does not grow with the samples: a few of them at a time, so that their activations fit 128 MiB, and sums. A
    sample costs about as much as running the network one and a half times for each of its groups: 64 to 300 samples
    tell the groups apart.

    Args:
        graph: from `quantize.prepare`, calibrated or trained; it is not changed.
        batches: inputs with labels, or all with None; without them the metric is the KL divergence to float.
        numerics: what the graph was prepared for.
        progress: called with the number of samples done.

    Raises:
        DataError: no sample, or logits that are NaN or infinite.
        MismatchError: some batches have labels and some have none.
        UsageError: the graph was never calibrated, or has no int8 group.

    Reference: Wu, Judd, Zhang, Isaev, Micikevicius, "Integer Quantization for Deep Learning Inference: Principles and
    Empirical Evaluation", 2020, arXiv:2004.09602, on partial quantization (one layer at a time).
    """
    board = Switchboard(graph, numerics=numerics)
    piece = max(1, min(_MOST_SAMPLES, _KEPT_VALUES // board.kept_elements))
    sums = _Sums(board)
    for inputs, labels in batches:
        for start in range(0, len(inputs), piece):
            part = slice(start, start + piece)
            sums.add(inputs[part], None if labels is None else labels[part])
            if progress is not None:
                progress(sums.n)
    return sums.result()


@dataclass
class _Error:
    """Power of a reference and of what another result differs from it, summed."""

    power: float = 0.0
    error: float = 0.0

    def add(self, reference: Tensor, other: Tensor) -> None:
        # row by row: copies in float64 of a whole batch of activations would be what takes most memory
        for wanted, found in zip(reference, other, strict=True):
            self.power += float(wanted.double().square().sum())
            self.error += float((wanted.double() - found.double()).square().sum())

    @property
    def db(self) -> float:
        if self.error == 0.0:
            return EQUAL_DB
        ratio = 10.0 * math.log10(self.power / self.error) if self.power > 0.0 else -EQUAL_DB
        return max(-EQUAL_DB, min(EQUAL_DB, ratio))


@dataclass
class _Answers:
    """What the logits of one mixture say, summed over samples."""

    right: int = 0
    kl: float = 0.0
    logits: _Error = field(default_factory=_Error)

    def add(self, reference: Tensor, logits: Tensor, labels: Tensor | None) -> None:
        # in float64: the tail of a confident network underflows in float32
        wanted, found = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
        self.kl += float((wanted.exp() * (wanted - found)).sum())
        self.logits.add(reference, logits)
        if labels is not None:
            self.right += int((logits.argmax(-1) == labels).sum())


class _Sums:
    """Everything that is added up over the samples."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._groups = {name: board.groups[name] for name in board.base.int8}
        self._only = {name: board.only(name) for name in self._groups}
        self._without = {name: board.plan([name]) for name in self._groups}
        ranged = [name for name in self._groups if board.groups[name].end in board.base.outputs]
        self._unranged = {name: board.without_output(name) for name in ranged}
        self._outputs = {name: _Error() for name in self._groups}
        self._alone = {name: _Answers() for name in self._groups}
        self._restored = {name: _Answers() for name in self._groups}
        self._kept = {name: _Answers() for name in ranged}
        self._int8, self._float = _Answers(), _Answers()
        self._labelled: bool | None = None
        self.n = 0

    def add(self, inputs: Tensor, labels: Tensor | None) -> None:
        if self._labelled is None:
            self._labelled = labels is not None
        if self._labelled != (labels is not None):
            raise MismatchError("Some batches have labels and some have none. Give all of them labels, or none.")
        reference = self._each_alone(inputs, labels)
        self._each_restored(inputs, labels, reference)
        self.n += len(inputs)

    def result(self) -> Sensitivity:
        if self.n == 0:
            raise DataError("Sensitivity saw no data. Give it at least one sample.")
        return Sensitivity(
            n=self.n,
            accuracy_float=self._share(self._float.right),
            accuracy_int8=self._share(self._int8.right),
            kl_int8=self._int8.kl / self.n,
            sqnr_int8_db=self._int8.logits.db,
            groups=[self._row(name, group) for name, group in self._groups.items()],
        )

    def _each_alone(self, inputs: Tensor, labels: Tensor | None) -> Tensor:
        """One group after the other in int8, the rest in float; gives the float logits."""
        board = self._board
        plain = board.in_float
        known = board.values(inputs, plain, keep=board.borders)
        reference: Tensor = known[board.logits]
        if not bool(torch.isfinite(reference).all()):
            raise DataError("The float network gives NaN or infinite logits for these samples. Look for broken inputs.")
        self._float.add(reference, reference, labels)
        for name, group in self._groups.items():
            plan = self._only[name]
            found = board.changed(known, (plain, plan), keep=(board.logits, group.end))
            self._outputs[name].add(known[group.end], board.result(group, plan, {**known, **found}))
            self._alone[name].add(reference, found.get(board.logits, reference), labels)
        return reference

    def _each_restored(self, inputs: Tensor, labels: Tensor | None, reference: Tensor) -> None:
        """One group after the other in float, then one output after the other; the rest in int8."""
        board = self._board
        known = board.values(inputs, board.base, keep=board.borders)
        logits: Tensor = known[board.logits]
        self._int8.add(reference, logits, labels)
        for plans, answers in ((self._without, self._restored), (self._unranged, self._kept)):
            for name, plan in plans.items():
                found = board.changed(known, (board.base, plan), keep=(board.logits,))
                answers[name].add(reference, found.get(board.logits, logits), labels)

    def _row(self, name: str, group: Group) -> GroupSensitivity:
        weights, output = _weight_db(self._board, group, self._only[name]), self._outputs[name].db
        alone, restored = self._alone[name], self._restored[name]
        flags = {"weights": weights is not None and weights < WEIGHT_DB, "output": output < OUTPUT_DB}
        return GroupSensitivity(
            name=name,
            operator=group.operator.name,
            weight_sqnr_db=weights,
            output_sqnr_db=output,
            end_to_end_sqnr_db=alone.logits.db,
            kl_alone=alone.kl / self.n,
            kl_gain=(self._int8.kl - restored.kl) / self.n,
            kl_gain_output=(self._int8.kl - self._kept[name].kl) / self.n if name in self._kept else 0.0,
            readers=list(self._board.readers(name)),
            drop_alone=self._share(self._float.right - alone.right),
            gain=self._share(restored.right - self._int8.right),
            flags=[flag for flag in ("weights", "output") if flags[flag]],
        )

    def _share(self, count: int) -> float | None:
        return count / self.n if self._labelled else None


def _weight_db(board: Switchboard, group: Group, plan: Plan) -> float | None:
    pair = board.weight(group, plan)
    if pair is None:
        return None
    error = _Error()
    error.add(*pair)
    return error.db
