"""Teachers that come as they are, and students that start as a part of the teacher: what a recipe may ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.artifact import file_hash
from edgekd.errors import MismatchError, UsageError
from edgekd.evaluate import Predictions
from edgekd.pipeline._mentors import wanted
from edgekd.pipeline._run import Run
from edgekd.recipe import AugmentSettings, ModelSettings, TeacherSettings

__all__ = [
    "FROM_TEACHER",
    "answers_on_test",
    "check_roles",
    "check_same_structure",
    "is_ready_made",
    "learns_from_weights",
    "notes",
    "parameter_count",
    "source_of",
    "weight_count",
]

FROM_TEACHER = "teacher"
"""As `weights` of a student or an assistant: those of the trained teacher. A file of this name is `./teacher`."""
_ROWS = 4096


def is_ready_made(run: Run, settings: ModelSettings) -> bool:
    """Whether a network answers as it is, without training and without weights of its own."""
    ready_made: bool = run._load("models", settings.model)[0].ready_made
    return ready_made


def learns_from_weights(run: Run, settings: ModelSettings) -> bool:
    """Whether a network starts with weights of the recipe's teacher."""
    member, _ = run._load("models", settings.model)
    return bool(member.needs_teacher_network) or settings.weights == FROM_TEACHER


def check_roles(run: Run) -> None:
    """Hold every table that names a model against what its model can be.

    Raises:
        UsageError: a ready-made teacher with a training or weights; a student that nothing can train; weights or
            blocks of a teacher that has none.
    """
    for role, settings in {**wanted(run), "student": run.recipe.student}.items():
        teaches = isinstance(settings, TeacherSettings)
        member, _ = run._load("models", settings.model)
        if member.ready_made:
            _check_ready_made(role, settings, teaches=teaches)
        if member.needs_teacher_network and (teaches or settings.weights is not None):
            raise UsageError(
                f"{role}.model = '{settings.model}' starts as a part of the trained teacher: it can only be a student"
                " or an assistant, without weights."
            )
        if settings.weights == FROM_TEACHER and teaches:
            raise UsageError(
                f"{role}.weights = '{FROM_TEACHER}' is for students. For a file of that name write ./teacher."
            )
        if settings.weights == FROM_TEACHER and is_ready_made(run, run.recipe.teacher):
            raise UsageError(
                f"{role}.weights = '{FROM_TEACHER}', but the teacher '{run.recipe.teacher.model}' is ready-made and has"
                " no weights to start from. Leave it out."
            )


def _check_ready_made(role: str, settings: ModelSettings, *, teaches: bool) -> None:
    if not teaches:
        raise UsageError(
            f"{role}.model = '{settings.model}' is ready-made and cannot be trained: it can only be a teacher. Give a"
            " network."
        )
    given = [key for key in ("train", "weights") if key in settings.model_fields_set]
    if given:
        raise UsageError(
            f"{role}.{given[0]}: '{settings.model}' is ready-made, it is neither trained nor loaded with weights."
            f" Remove {' and '.join(given)}."
        )


def check_same_structure(run: Run, settings: ModelSettings, network: nn.Module) -> None:
    """A network that starts from the teacher's weights must have the teacher's tensors.

    Raises:
        MismatchError: names both models, and the first tensor that differs.
    """
    teacher = run.recipe.teacher
    ours = {name: list(value.shape) for name, value in network.state_dict().items()}
    theirs = {name: list(value.shape) for name, value in run.build(teacher, run.recipe.seed).state_dict().items()}
    different = next((name for name in (*theirs, *ours) if ours.get(name) != theirs.get(name)), None)
    if different is not None:
        raise MismatchError(
            f"weights = '{FROM_TEACHER}' needs a network like the teacher, but '{settings.model}' differs from"
            f" '{teacher.model}': tensor '{different}' is {ours.get(different, 'missing')} and"
            f" {theirs.get(different, 'missing')}. Give it the teacher's model and options."
        )


def notes(run: Run) -> Iterator[str]:
    """What the user should know before a run with such teachers."""
    augment = run.recipe.data.augment
    changed = [key for key, value in augment.model_dump().items() if value != AugmentSettings.model_fields[key].default]
    for role, settings in wanted(run).items():
        if changed and getattr(run._load("models", settings.model)[0], "knows_plain_images_only", False):
            yield (
                f"{role}: stored answers are of the images as they are, and data.augment ({', '.join(changed)}) shows"
                " the student changed ones. A teacher that computes sees what the student sees."
            )


def source_of(run: Run, settings: ModelSettings) -> dict[str, Any]:
    """What a ready-made teacher is: its kind, its options, and the content of its files; not where they lie."""
    factory = run.factory(settings)
    head, _, argument = settings.model.partition(":")
    return {
        "model": head if factory.takes_file else f"{head}:{argument}",
        "options": factory.options.model_dump(mode="json"),
        # a missing file is reported by the build, with the words for it
        "files": [file_hash(path) for path in factory.sources() if path.is_file()],
    }


def answers_on_test(run: Run, network: nn.Module, predict: Callable[[], Predictions]) -> Predictions | None:
    """A ready-made teacher's predictions of the test split; None if it cannot be asked about it.

    Args:
        run: the run.
        network: the teacher.
        predict: asks it about the test images.

    Raises:
        MismatchError: stored answers for another number of samples than the data has, or for samples of other classes.
    """
    if not hasattr(network, "test_logits"):
        return predict()
    _check_rows(run, network)
    _doubt(run, network)
    if network.test_logits is None:
        run.watcher.message("The stored teacher has no test_logits: it is left out of the accuracy ladder.")
        return None
    return Predictions(np.asarray(network.test_logits, dtype=np.float32), run.data.test.labels.numpy().astype(np.int64))


def _check_rows(run: Run, network: nn.Module) -> None:
    """Stored rows must be those of this run's samples, in its order."""
    logits = network.test_logits
    rows = {
        "training": (network.samples, network.true_labels, run.data.train.labels),
        "test": (len(logits) if isinstance(logits, Tensor) else None, network.test_true_labels, run.data.test.labels),
    }
    for split, (count, given, truth) in rows.items():
        if count is not None and count != len(truth):
            raise MismatchError(
                f"The stored teacher has answers for {count} {split} samples, this run's {split} split has"
                f" {len(truth)}. Store one row for each of its samples, in its order; those kept for validation are"
                " not among them."
            )
        if isinstance(given, Tensor) and (len(given) != len(truth) or bool((given != truth).any())):
            raise MismatchError(
                f"The stored teacher's true labels are not those of this run's {split} split: its rows are of other"
                " samples or in another order. Ask it again with this recipe's [data] and seed."
            )


def _doubt(run: Run, network: nn.Module) -> None:
    """Rows in another order than the samples look like guesses: say so, since nothing else would."""
    truth = run.data.train.labels
    right = 0
    for ids in torch.split(torch.arange(len(truth)), _ROWS):
        network.look_up(ids)  # type: ignore[operator]  # it has test_logits, so it looks up
        answers = network(torch.empty(1).expand(len(ids), *run.data.preprocessing.input_shape))
        right += int((answers.argmax(dim=1) == truth[ids]).sum())
    commonest = int(truth.bincount().max())
    if right <= commonest:
        run.watcher.message(
            f"The stored teacher names the true class of {right} of {len(truth)} training samples, no more than always"
            f" naming the commonest would ({commonest}). Are its rows in the order of the training split?"
        )


def parameter_count(network: nn.Module) -> dict[str, int]:
    """For the metrics of a ready-made teacher: how many weights it has, if that is known."""
    count = getattr(network, "parameter_count", None)
    return {} if count is None else {"parameters": int(count)}


def weight_count(network: nn.Module) -> int | None:
    """How many weights a network has; None if it does not tell."""
    if hasattr(network, "parameter_count"):
        return parameter_count(network).get("parameters")
    return sum(parameter.numel() for parameter in network.parameters())
