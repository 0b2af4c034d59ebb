"""Run networks with their taps, and check before the first step that they fit together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from edgekd._step_clock import part
from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs
from edgekd.taps import Tapped, TupleOutputs, named_outputs, probe, tapped

__all__ = ["check_classes", "example_outputs", "observe", "observe_frozen", "tell_ids", "with_taps"]


def with_taps(
    network: nn.Module, losses: Iterable[Loss], *, side: str, more: Iterable[str] = ()
) -> Tapped | TupleOutputs:
    """The network with every tap that the losses read on its side ("student" or "teacher"), and some more."""
    names = [name for loss in losses for name in (loss.student_taps() if side == "student" else loss.teacher_taps())]
    return tapped(network, [*names, *more])


def observe(network: Tapped | TupleOutputs, inputs: Tensor) -> Outputs:
    """One forward, with gradient."""
    logits, taps = named_outputs(network, network(inputs))
    return Outputs(logits, taps)


def observe_frozen(
    network: Tapped | TupleOutputs, inputs: Tensor, ids: Tensor | None = None, epoch: int | None = None
) -> Outputs:
    """One forward in eval mode and without gradient, whatever mode the network was left in.

    Args:
        network: a teacher.
        inputs: the batch.
        ids: its samples, for a teacher that looks its answers up instead of computing them.
        epoch: in which they are shown, for one that has other answers for each epoch; None outside of training.
    """
    if network.training:
        network.eval()
    if ids is not None:
        tell_ids(network, ids, epoch)
    # not inference_mode: its tensors cannot take part in the student's backward pass
    with part("teacher"), torch.no_grad():
        return observe(network, inputs)


def tell_ids(network: nn.Module, ids: Tensor, epoch: int | None = None) -> None:
    """Say which samples come next, if the network looks its answers up instead of computing them.

    Args:
        network: wrapped or not; it has `look_up(ids)` if it has one answer for each sample, `look_up_view(ids, epoch)`
            if it has one for each view of it.
        ids: indices in the training split, shape (B,).
        epoch: in which they are shown; None outside of training, where only `look_up` is called.
    """
    if isinstance(network, (Tapped, TupleOutputs)):
        network = network.model if isinstance(network, Tapped) else network.module
    look_up, look_up_view = getattr(network, "look_up", None), getattr(network, "look_up_view", None)
    if callable(look_up_view) and epoch is not None:
        look_up_view(ids, epoch)
    elif callable(look_up):
        look_up(ids)


def example_outputs(network: Tapped | TupleOutputs, example: Tensor) -> Outputs:
    """One forward of a copy: nothing of the network moves."""
    logits, taps = named_outputs(network, probe(network, example))
    return Outputs(logits, taps)


def check_classes(student: Outputs, teachers: Sequence[Outputs]) -> None:
    """Both sides must give logits (B, K) with the same K.

    Raises:
        MismatchError: names both sides and both numbers.
    """
    for side, outputs in [("student", student), *(("teacher", teacher) for teacher in teachers)]:
        if outputs.logits.dim() != 2:
            raise MismatchError(
                f"The {side} gives an output of shape {tuple(outputs.logits.shape)}, but logits must be (B, K)."
                " Use a classifier."
            )
    classes = student.logits.shape[1]
    for teacher in teachers:
        if teacher.logits.shape[1] != classes:
            raise MismatchError(
                f"Student and teacher disagree on classes: {classes} and {teacher.logits.shape[1]}."
                " Train the teacher on the student's data set, or load weights with as many classes."
            )
