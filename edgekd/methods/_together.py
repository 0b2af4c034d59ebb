"""Networks that learn at once and from each other: the recipe's losses, once for each learner and its teachers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import spec
from edgekd.errors import MismatchError, UsageError
from edgekd.losses._base import Loss, Outputs, Step
from edgekd.methods._base import Batch, Context, Method, Term, WeightedLoss
from edgekd.methods._observe import check_classes
from edgekd.taps import TupleOutputs

__all__ = ["Together", "detached", "same_classes"]


@dataclass(frozen=True)
class _Lesson:
    """One loss of one learner.

    Args:
        name: of its term.
        weight: in the sum.
        loss: with a connector and a memory of its own.
        learner: whose outputs it trains.
        teacher: whose outputs it compares them with; None for the labels.
    """

    name: str
    weight: float
    loss: Loss
    learner: int
    teacher: int | None


class Together(Method):
    """A student, and others beside it that learn with it and are not exported with it.

    Every learner has its own copy of every loss, with its own connector and memory; the student has the recipe's. A
    loss with several teachers is averaged over them. Terms are named after the loss and, but for the student's, the
    learner: `kd`, `kd@peer1`. Teachers that are given are not looked at.

    Weights that suit a trained teacher, 0.9 for kd with tau 4 beside 0.1 for the labels, do not suit networks that
    begin untrained: they agree with each other before either has learned anything. The papers weigh both alike.

    Raises:
        UsageError: no loss is there by which one could teach another.
    """

    needs_teacher = False
    reads_taps: ClassVar[bool] = True
    """Whoever teaches has layers that a loss on features can read; if not, such losses are left out."""

    others: nn.ModuleList
    """What is trained beside the student: peers, or branches."""
    copies: nn.ModuleList
    """The losses of everybody else, and the student's from its further teachers."""

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        losses: Sequence[WeightedLoss],
        options: spec.Options | None = None,
        context: Context | None = None,
    ) -> None:
        kept = [term for term in losses if self.reads_taps or not _compares_features(term.loss)]
        super().__init__(student, (), kept, options, context)
        if not any(term.loss.needs_teacher for term in kept):
            names = ", ".join(term.name for term in losses) or "none"
            what = "a loss that needs a teacher" if self.reads_taps else "a loss that needs a teacher's logits"
            raise UsageError(
                f"Method '{self._name}' needs {what}: here the networks teach each other. Got: {names}. Add kd."
            )
        self.others, self.copies = nn.ModuleList(), nn.ModuleList()

    def trained(self) -> tuple[nn.Module, ...]:
        """The student, everybody beside it, and the connectors of all."""
        return (self.student, self.connectors, self.others, self.copies)

    @property
    def floating(self) -> bool:
        """The student is a float module, not the graph of an int8 one."""
        return not isinstance(self.student, (TupleOutputs, GraphModule))

    def _peers(self, count: int, example: Tensor) -> list[nn.Module]:
        """Further networks like the student, on the example's device.

        Raises:
            UsageError: there is no way to build one.
        """
        build = self.context.peer
        if build is None:
            raise UsageError(
                f"Method '{self._name}' trains further networks like the student, and nothing says how to build one."
                " Run it from a recipe, or give it Context(peer=...)."
            )
        return [build(number).to(example.device) for number in range(1, count + 1)]

    def _enrol(
        self,
        names: Sequence[str],
        learners: Sequence[Outputs],
        targets: Sequence[Outputs],
        taught_by: Sequence[Sequence[int]],
    ) -> None:
        """Give every learner its losses, and connect them.

        Args:
            names: of the learners, the student first.
            learners: what they give for the example.
            targets: what is taught, for the example.
            taught_by: for each learner, which of the targets it learns from; for one that learns from labels, none.
        """
        lessons = [
            _Lesson(_named(term.name, name), term.weight, term.loss, learner, teacher)
            for learner, name in enumerate(names)
            for term in self.losses
            for teacher in (taught_by[learner] if term.loss.needs_teacher else (None,))
            if _there(term.loss.student_taps(), learners[learner])
            and (teacher is None or _there(term.loss.teacher_taps(), targets[teacher]))
        ]
        seen: set[int] = set()
        for index, lesson in enumerate(lessons):
            if id(lesson.loss) in seen:
                # copied before anybody's is connected: a connector is made for one pair
                lessons[index] = _with_loss(lesson, copy.deepcopy(lesson.loss))
                self.copies.append(lessons[index].loss)
            seen.add(id(lesson.loss))
        for lesson in lessons:
            teacher = None if lesson.teacher is None else targets[lesson.teacher]
            self.connect([lesson.loss], learners[lesson.learner], teacher)
        self._lessons = tuple(lessons)

    def _terms(
        self, batches: Sequence[Batch], learners: Sequence[Outputs], targets: Sequence[Outputs]
    ) -> Mapping[str, Term]:
        """The terms of all, by name.

        Args:
            batches: what each learner saw.
            learners: what each learner gave for it.
            targets: what is taught, without gradient.
        """
        values: dict[str, list[Tensor]] = {}
        for lesson in self._lessons:
            batch = batches[lesson.learner]
            step = Step(
                student=learners[lesson.learner],
                teachers=() if lesson.teacher is None else (targets[lesson.teacher],),
                labels=batch.labels,
                ids=batch.ids,
                epoch=batch.epoch,
                progress=batch.progress,
            )
            values.setdefault(lesson.name, []).append(lesson.loss(step))
        weights = {lesson.name: lesson.weight for lesson in self._lessons}
        return {name: Term(torch.stack(found).mean(), weights[name]) for name, found in values.items()}

    @property
    def _name(self) -> str:
        return type(self).__module__.rpartition(".")[2]


def detached(outputs: Outputs) -> Outputs:
    """The same as something to learn from: no gradient flows into it."""
    return Outputs(outputs.logits.detach(), {name: tap.detach() for name, tap in outputs.taps.items()})


def same_classes(names: Sequence[str], outputs: Sequence[Outputs]) -> None:
    """Everybody must give logits (B, K) with the student's K.

    Raises:
        MismatchError: names who does not.
    """
    check_classes(outputs[0], [])
    for name, one in zip(names[1:], outputs[1:], strict=True):
        if one.logits.shape != outputs[0].logits.shape:
            raise MismatchError(
                f"The student and {name} have no output in common: logits {tuple(outputs[0].logits.shape)} and"
                f" {tuple(one.logits.shape)}. Build networks for the same classes."
            )


def _named(term: str, learner: str) -> str:
    return term if learner == "student" else f"{term}@{learner}"


def _compares_features(loss: Loss) -> bool:
    return loss.needs_teacher and bool(loss.student_taps() or loss.teacher_taps())


def _there(taps: Sequence[str], outputs: Outputs) -> bool:
    return all(tap in outputs.taps for tap in taps)


def _with_loss(lesson: _Lesson, loss: Loss) -> _Lesson:
    return _Lesson(lesson.name, lesson.weight, loss, lesson.learner, lesson.teacher)
