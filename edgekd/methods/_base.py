"""The contract of a method: who learns from whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from edgekd import spec
from edgekd.batches import Sampling
from edgekd.errors import UsageError
from edgekd.losses._base import Loss, Outputs, Split

__all__ = ["Batch", "Context", "Method", "Sampling", "Term", "WeightedLoss"]


@dataclass(frozen=True)
class Batch:
    """One training batch as the model sees it.

    Args:
        inputs: normalised and augmented, shape (B, C, H, W).
        labels: class probabilities, shape (B, K); zeros for a sample without label.
        ids: indices of the samples in the training split, shape (B,).
        epoch: 0-based.
        progress: fraction of training done, in [0, 1).
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    epoch: int
    progress: float


@dataclass(frozen=True)
class WeightedLoss:
    """A named loss and its weight in the sum."""

    name: str
    loss: Loss
    weight: float


@dataclass(frozen=True)
class Term:
    """One term of a step's objective: its raw value (a scalar tensor) and its weight."""

    value: Tensor
    weight: float


@dataclass(frozen=True)
class Context:
    """What a method may use beside the networks and losses it is given.

    Args:
        split: the training split; None outside of a run.
        peer: another network that gives and takes what the student does, by a number from 1: the same number, the same
            network. A float student's peers are fresh ones of its own kind; those of an int8 student are copies of the
            float student that it was made from. None where there is no way to build one.
    """

    split: Split | None = None
    peer: Callable[[int], nn.Module] | None = None


class Method(nn.Module):
    """Builds what is trained, and gives the loss terms of one step.

    What a subclass registers in `prepare` beside the student is trained if it is in `trained`, and is kept in
    checkpoints with its buffers either way; it is never exported.

    Args:
        student: the network that is exported.
        teachers: never trained, never exported, always in eval mode.
        losses: the weighted terms; their connectors train with the student.
        options: of this method; None for its defaults.
        context: what else there is to use.
    """

    Options: ClassVar[type[spec.Options]] = spec.Options
    needs_teacher: ClassVar[bool] = True
    sampling: ClassVar[Sampling] = "plain"

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        losses: Sequence[WeightedLoss],
        options: spec.Options | None = None,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.teachers = list(teachers)  # a list keeps them out of parameters(), train() and state_dict()
        self.losses = _named_once(losses)
        self.options = self.Options() if options is None else options
        self.context = context or Context()
        # a module's name must not contain the dots of a user's own `package.module:Loss`
        self.connectors = nn.ModuleDict({term.name.replace(".", "_"): term.loss for term in self.losses})

    @classmethod
    def student_taps(cls, options: spec.Options) -> tuple[str, ...]:
        """Modules of the student whose outputs the method itself reads, beside those of the losses."""
        return ()

    def prepare(self, example: Tensor) -> None:
        """Check shapes and build connectors from one example input, before the optimizer exists."""
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of every epoch (0-based), also of the first one after a resume.

        After a resume in the middle of an epoch, `go_on` follows with what there was.
        """

    def between_steps(self) -> dict[str, Tensor]:
        """What this process carries from one step of an epoch to the next beside the state dict."""
        return {}

    def go_on(self, carried: Mapping[str, Tensor]) -> None:
        """Take up what `between_steps` gave; the networks have the weights of that moment."""

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The loss terms of one step, by name."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Mapping[str, Term]:
        """The same as `terms`; a wrapper for several processes calls it."""
        return self.terms(batch)

    def trained(self) -> Iterable[nn.Module]:
        """Modules whose parameters the optimizer gets."""
        return (self.student, self.connectors)

    def exported(self) -> nn.Module:
        """The network to ship: no teacher, connector, tap or peer in it."""
        return self.student

    def candidates(self) -> Mapping[str, nn.Module]:
        """Every network that could be shipped, by name; all are built like the student."""
        return {"student": self.exported()}

    def exits(self) -> Mapping[str, nn.Module]:
        """Classifiers on the student's way, by tap, that end before it does; each from inputs to logits."""
        return {}

    def companions(self) -> dict[str, Tensor]:
        """The state of everything beside the student: connectors, branches, peers, memories."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("student.")}

    def join(self, companions: Mapping[str, Tensor]) -> None:
        """Take over what `companions` of another training gave, where name and shape agree; call after `prepare`.

        A student that is trained further, as int8, would otherwise meet connectors and branches that know nothing, and
        their first gradients would undo what it learned.
        """
        own = self.companions()
        agreeing = {name: value for name, value in companions.items() if name in own and own[name].shape == value.shape}
        self.load_state_dict(agreeing, strict=False)

    def connect(self, losses: Iterable[Loss], student: Outputs, teacher: Outputs | None) -> None:
        """Let losses look at example outputs, and check that they have what they need.

        Raises:
            MismatchError: shapes that cannot be joined.
            UsageError: a loss that needs labels, on data without.
        """
        for loss in losses:
            loss.split = self.context.split
            if loss.needs_labels and loss.split is not None and not loss.split.labelled:
                raise UsageError(
                    f"Loss '{_name_of(loss)}' needs labels, but the training split has samples without. Use losses that"
                    " only look at the teacher, kd for example, or label the data."
                )
            loss.connect(student, teacher if loss.needs_teacher else None)


def _name_of(loss: Loss) -> str:
    return type(loss).__module__.rpartition(".")[2]


def _named_once(losses: Sequence[WeightedLoss]) -> tuple[WeightedLoss, ...]:
    """Tell two terms of the same loss apart: hint, hint#2."""
    seen: dict[str, int] = {}
    named = []
    for term in losses:
        seen[term.name] = seen.get(term.name, 0) + 1
        name = term.name if seen[term.name] == 1 else f"{term.name}#{seen[term.name]}"
        named.append(WeightedLoss(name, term.loss, term.weight))
    return tuple(named)
