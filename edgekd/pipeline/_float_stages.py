"""The float stages: teachers, assistants, the student that learns from them, and the same student alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edgekd.artifact import Artifact, Draft, file_hash
from edgekd.engine import FitResult
from edgekd.evaluate import accuracy
from edgekd.methods._base import Method
from edgekd.pipeline._caching import deciding, fill_cache, lessons
from edgekd.pipeline._exits import write_exits
from edgekd.pipeline._mentors import Mentor, assistant_name, parents_of, teacher_name
from edgekd.pipeline._ready_made import (
    FROM_TEACHER,
    answers_on_test,
    is_ready_made,
    learns_from_weights,
    parameter_count,
    source_of,
)
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import (
    COMPANIONS,
    as_json,
    check_neighbour,
    example_inputs,
    initial,
    networks_of,
    predicted,
    run_method,
    training,
    weighted_losses,
    weights_path,
    write_model,
    write_predictions,
)
from edgekd.recipe import (
    AssistantSettings,
    LossSettings,
    TeacherSettings,
    TrainSettings,
)
from edgekd.weights import load_weights, save_weights

__all__ = ["mentor_stages", "student_stages"]

SOURCE = "source.json"
_ALONE = [LossSettings(name="cross_entropy", weight=1.0)]
_APART = 10_007  # seeds of a student's peers are this far apart: further than anybody repeats a run


def mentor_stages(run: Run) -> list[Mentor]:
    """Everyone the student learns from: teachers first, then each assistant, distilled from those before it."""
    made = []
    for index, settings in enumerate((run.recipe.teacher, *run.recipe.teachers)):
        made.append(teacher_stage(run, settings, teacher_name(index)))
    for index, assistant in enumerate(run.recipe.assistants):
        made.append(_assistant(run, assistant, assistant_name(index), list(made)))
    return made


def teacher_stage(run: Run, settings: TeacherSettings, name: str) -> Mentor:
    """A teacher: trained by the recipe, taken from its weights file, or ready-made."""
    if is_ready_made(run, settings):
        return Mentor(name, settings, _ready_made_stage(run, settings, name))
    shared = {"teacher": _mentor(settings, settings.train), "seed": run.recipe.seed, **_computing(run)}
    if settings.weights is not None:
        path = weights_path(run, settings)
        # the content decides, not the path: other weights under the same name are another teacher
        shared["weights"] = _file_hash(path)
        check_neighbour(run, path)

    def make(draft: Draft, checkpoint: Path) -> None:
        network = run.build(settings, run.recipe.seed)
        if settings.weights is not None:
            load_weights(network, weights_path(run, settings))
            history = None
        else:
            history = _train_alone(run, network, settings.train, run.recipe.seed, checkpoint)
        write_model(run, draft, network, history)

    made = run.stage(name, kind="checkpoint", settings=shared, parents={}, make=make, everywhere=True)
    return Mentor(name, settings, made)


def _ready_made_stage(run: Run, settings: TeacherSettings, name: str) -> Artifact:
    """What a ready-made teacher answers on the test split, and what it is; it has no weights to keep."""
    source = source_of(run, settings)

    def make(draft: Draft, checkpoint: Path) -> None:
        network = run.build(settings, run.recipe.seed)
        # part of the artifact's content, so that students of another teacher are other students
        (draft.folder / SOURCE).write_text(as_json(source), encoding="utf-8")
        found = answers_on_test(run, network, lambda: predicted(run, network, run.data.test))
        if found is not None:
            write_predictions(draft, found)
        draft.spec = run.spec
        draft.metrics |= parameter_count(network)

    stage_settings = {"teacher": source, "device": run.device.type}
    return run.stage(name, kind="ready_made", settings=stage_settings, parents={}, make=make)


def _assistant(run: Run, chosen: AssistantSettings, name: str, mentors: Sequence[Mentor]) -> Mentor:
    train = chosen.train or run.recipe.distill.train
    settings = {
        "assistant": _mentor(chosen, chosen.train),
        **_distilling(run),
        "train": train.deciding(),
        "seed": run.recipe.seed,
        **_computing(run),
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        method = run_method(
            run,
            initial(run, chosen, run.recipe.seed),
            networks_of(run, mentors),
            run.recipe.distill.losses,
            peer=lambda index: run.build(chosen, run.recipe.seed + index),
        )
        history = training(run, method, train, seed=run.recipe.seed, checkpoint=checkpoint)
        write_model(run, draft, method.exported(), history)

    made = run.stage(
        name, kind="checkpoint", settings=settings, parents=parents_of(mentors), make=make, everywhere=True
    )
    return Mentor(name, chosen, made)


def student_stages(run: Run, mentors: Sequence[Mentor]) -> tuple[Artifact, Artifact | None]:
    """The distilled student and the student alone; repeats with other seeds are made too.

    Returns:
        The first seed's student, which goes on, and the first seed's student alone, if the recipe wants it.
    """
    students, alone = [], []
    for index in range(run.recipe.distill.repeats):
        suffix = f"-seed{run.recipe.seed + index}" if index else ""
        if run.recipe.distill.baseline:
            alone.append(_alone(run, f"student_alone{suffix}", run.recipe.seed + index))
        students.append(_distilled(run, f"student{suffix}", mentors, run.recipe.seed + index))
    return students[0], alone[0] if alone else None


def _alone(run: Run, name: str, seed: int) -> Artifact:
    settings = {
        **_student(run),
        "train": run.recipe.distill.train.deciding(),
        "seed": seed,
        **_computing(run),
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        network = initial(run, run.recipe.student, seed)
        history = _train_alone(run, network, run.recipe.distill.train, seed, checkpoint)
        write_model(run, draft, network, history)

    # a student that starts as a part of the teacher is another one if the teacher is
    parents = {"teacher": run.made["teacher"]} if learns_from_weights(run, run.recipe.student) else {}
    return run.stage(name, kind="checkpoint", settings=settings, parents=parents, make=make, everywhere=True)


def _distilled(run: Run, name: str, mentors: Sequence[Mentor], seed: int) -> Artifact:
    distill = run.recipe.distill
    settings = {
        **_student(run),
        **_distilling(run),
        "train": distill.train.deciding(),
        "seed": seed,
        **_computing(run),
        **deciding(run),
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        with lessons(run, mentors, distill.losses, distill.train) as given:
            method = run_method(
                run,
                initial(run, run.recipe.student, seed),
                given.teachers,
                distill.losses,
                peer=lambda index: initial(run, run.recipe.student, seed + _APART * index),
            )
            history = training(
                run,
                method,
                distill.train,
                seed=seed,
                checkpoint=checkpoint,
                batches_seed=given.batches_seed,
                views=given.views,
            )
        write_model(run, draft, _picked(run, draft, method), history)
        if companions := method.companions():
            save_weights(draft.folder / COMPANIONS, companions, metadata={})
        if exits := method.exits():
            example = example_inputs(run, 2)
            write_exits(run, draft, exits, lambda network: predicted(run, network, run.data.test), example)

    parents = parents_of(mentors)
    if distill.cache is not None and not run.open_only and not run.is_there(name, "checkpoint", settings, parents):
        fill_cache(run, mentors, distill.train)
    return run.stage(name, kind="checkpoint", settings=settings, parents=parents, make=make, everywhere=True)


def _picked(run: Run, draft: Draft, method: Method) -> nn.Module:
    """The network that is shipped, of those that a method trained: the one named, or the best on validation."""
    found, asked = method.candidates(), run.recipe.distill.export
    if len(found) == 1:
        return next(iter(found.values()))
    scores = {name: validation_accuracy(run, network) for name, network in found.items()}
    picked = max(scores, key=lambda name: scores[name]) if asked == "best" else asked
    draft.metrics |= {"val_accuracy": scores, "kept": picked}
    return found[picked]


def validation_accuracy(run: Run, network: nn.Module) -> float:
    """Accuracy of a network on the validation split, in [0, 1]."""
    network.eval()
    return accuracy(predicted(run, network, run.data.val)).value


def _train_alone(run: Run, network: nn.Module, settings: TrainSettings, seed: int, checkpoint: Path) -> FitResult:
    method: Method = run._load("methods", "alone")[0](network, [], weighted_losses(run, _ALONE))
    return training(run, method, settings, seed=seed, checkpoint=checkpoint)


def _mentor(settings: TeacherSettings | AssistantSettings, train: TrainSettings | None) -> dict[str, Any]:
    return {**settings.model_dump(mode="json"), "train": None if train is None else train.deciding()}


def _computing(run: Run) -> dict[str, Any]:
    """What else changes a trained network: augmentation and arithmetic."""
    return {
        "augment": run.recipe.data.augment.model_dump(mode="json"),
        "precision": run.recipe.compute.precision,
        "device": run.device.type,
        # compiled arithmetic rounds in other places
        **({"compile": run.recipe.compute.compile} if run.recipe.compute.compile != "off" else {}),
    }


def _distilling(run: Run) -> dict[str, Any]:
    """The method and its losses, as plain values; what has its default is left out, as it was before it was there."""
    distill = run.recipe.distill
    more = {key: value for key in ("method_options", "export") if (value := getattr(distill, key)) not in ({}, "best")}
    return {"method": distill.method, "losses": [loss.model_dump(mode="json") for loss in distill.losses], **more}


def _student(run: Run) -> dict[str, Any]:
    """The student's network and where it starts; as for the teacher, the content of its weights decides."""
    settings = run.recipe.student
    if settings.weights is None or settings.weights == FROM_TEACHER:
        return {"student": settings.model_dump(mode="json")}
    start = {"weights": _file_hash(weights_path(run, settings))}
    return {"student": settings.model_dump(mode="json"), **start}


def _file_hash(path: Path) -> str | None:
    # a missing file is reported by load_weights, with the words for it
    return file_hash(path) if path.is_file() else None
