"""The float stages: the teacher, the student that learns from it, and the same student alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.artifact import Artifact, Draft, file_hash, open_artifact
from edgekd.batches import Batches, evaluation_batches
from edgekd.engine import FitResult, Hooks, Tick, check_compatible, fit
from edgekd.errors import ArtifactError
from edgekd.evaluate import Predictions, accuracy, predict
from edgekd.losses._base import Split
from edgekd.methods._base import Context, Method, WeightedLoss
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
from edgekd.pipeline._run import WEIGHTS, Run
from edgekd.recipe import (
    AssistantSettings,
    AugmentSettings,
    LossSettings,
    ModelSettings,
    TeacherSettings,
    TrainSettings,
)
from edgekd.taps import logits_of
from edgekd.weights import load_weights, read_weights, save_weights

__all__ = [
    "COMPANIONS",
    "WEIGHTS",
    "companions_of",
    "initial",
    "mentor_stages",
    "network_of",
    "networks_of",
    "predictions_of",
    "student_stages",
    "teacher_stage",
    "training",
    "weighted_losses",
    "write_model",
]

PREDICTIONS, HISTORY, SOURCE = "predictions.npz", "history.json", "source.json"
COMPANIONS = "companions.safetensors"
"""What trained beside a student: connectors, branches, peers, memories; the int8 student goes on with them."""
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
    shared = {"teacher": settings.model_dump(mode="json"), "seed": run.recipe.seed, **_computing(run)}
    if settings.weights is not None:
        path = _weights_path(run, settings)
        # the content decides, not the path: other weights under the same name are another teacher
        shared["weights"] = _file_hash(path)
        check_neighbour(run, path)

    def make(draft: Draft, checkpoint: Path) -> None:
        network = run.build(settings, run.recipe.seed)
        if settings.weights is not None:
            load_weights(network, _weights_path(run, settings))
            history = None
        else:
            history = _train_alone(run, network, settings.train, run.recipe.seed, checkpoint)
        write_model(run, draft, network, history)

    return Mentor(name, settings, run.stage(name, kind="checkpoint", settings=shared, parents={}, make=make))


def _ready_made_stage(run: Run, settings: TeacherSettings, name: str) -> Artifact:
    """What a ready-made teacher answers on the test split, and what it is; it has no weights to keep."""
    source = source_of(run, settings)

    def make(draft: Draft, checkpoint: Path) -> None:
        network = run.build(settings, run.recipe.seed)
        # part of the artifact's content, so that students of another teacher are other students
        (draft.folder / SOURCE).write_text(as_json(source), encoding="utf-8")
        found = answers_on_test(run, network, lambda: _predict(run, network, run.data.test))
        if found is not None:
            write_predictions(draft, found)
        draft.spec = run.spec
        draft.metrics |= parameter_count(network)

    stage_settings = {"teacher": source, "device": run.device.type}
    return run.stage(name, kind="ready_made", settings=stage_settings, parents={}, make=make)


def _assistant(run: Run, chosen: AssistantSettings, name: str, mentors: Sequence[Mentor]) -> Mentor:
    train = chosen.train or run.recipe.distill.train
    settings = {
        "assistant": chosen.model_dump(mode="json"),
        **_distilling(run),
        "train": train.model_dump(mode="json"),
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

    made = run.stage(name, kind="checkpoint", settings=settings, parents=parents_of(mentors), make=make)
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
        "train": run.recipe.distill.train.model_dump(mode="json"),
        "seed": seed,
        **_computing(run),
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        network = initial(run, run.recipe.student, seed)
        history = _train_alone(run, network, run.recipe.distill.train, seed, checkpoint)
        write_model(run, draft, network, history)

    # a student that starts as a part of the teacher is another one if the teacher is
    parents = {"teacher": run.made["teacher"]} if learns_from_weights(run, run.recipe.student) else {}
    return run.stage(name, kind="checkpoint", settings=settings, parents=parents, make=make)


def _distilled(run: Run, name: str, mentors: Sequence[Mentor], seed: int) -> Artifact:
    distill = run.recipe.distill
    settings = {
        **_student(run),
        **_distilling(run),
        "train": distill.train.model_dump(mode="json"),
        "seed": seed,
        **_computing(run),
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        method = run_method(
            run,
            initial(run, run.recipe.student, seed),
            networks_of(run, mentors),
            distill.losses,
            peer=lambda index: initial(run, run.recipe.student, seed + _APART * index),
        )
        history = training(run, method, distill.train, seed=seed, checkpoint=checkpoint)
        write_model(run, draft, _picked(run, draft, method), history)
        if companions := method.companions():
            save_weights(draft.folder / COMPANIONS, companions, metadata={})
        if exits := method.exits():
            example = example_inputs(run, 2)
            write_exits(run, draft, exits, lambda network: _predict(run, network, run.data.test), example)

    return run.stage(name, kind="checkpoint", settings=settings, parents=parents_of(mentors), make=make)


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
    return accuracy(_predict(run, network, run.data.val)).value


def run_method(
    run: Run,
    student: nn.Module,
    teachers: Sequence[nn.Module],
    losses: Sequence[LossSettings],
    *,
    peer: Callable[[int], nn.Module] | None = None,
) -> Method:
    """The recipe's method around a student."""
    member, _ = run._load("methods", run.recipe.distill.method)
    context = Context(Split(run.data.train.labels, len(run.data.classes)), peer)
    given = teachers if member.needs_teacher else []
    options = member.Options(**run.recipe.distill.method_options)
    method: Method = member(student, given, weighted_losses(run, losses), options, context)
    return method


def weighted_losses(run: Run, settings: Sequence[LossSettings]) -> list[WeightedLoss]:
    """The losses of a recipe; one that is named twice gets a number, so that their curves stay apart."""
    names = [loss.name for loss in settings]
    return [
        WeightedLoss(
            loss.name if names.count(loss.name) == 1 else f"{loss.name}_{index}",
            run.member("losses", loss.name, loss.options),
            loss.weight,
        )
        for index, loss in enumerate(settings)
    ]


def training(
    run: Run,
    method: Method,
    settings: TrainSettings,
    *,
    seed: int,
    checkpoint: Path,
    augment: AugmentSettings | None = None,
    hooks: Hooks | None = None,
    companions: Mapping[str, torch.Tensor] | None = None,
) -> FitResult:
    """Train a method on the run's training split, validating after every epoch."""
    data = run.data
    batches = Batches(
        data.train,
        batch_size=settings.batch_size,
        classes=len(data.classes),
        preprocessing=data.preprocessing,
        seed=seed,
        augment=augment or run.recipe.data.augment,
        label_smoothing=settings.label_smoothing,
        sampling=type(method).sampling,
    )

    def validate(network: nn.Module) -> float:
        return accuracy(_predict(run, network, data.val)).value

    def tell(tick: Tick) -> None:
        loss = "" if tick.loss is None else f", loss {tick.loss:.3f}"
        run.watcher.progress(tick.step, tick.steps, f"epoch {tick.epoch + 1}/{tick.epochs}{loss}")

    return fit(
        method,
        batches,
        settings=settings,
        compute=run.recipe.compute,
        seed=seed,
        evaluate=validate,
        checkpoint=checkpoint,
        tag=checkpoint.name,
        hooks=hooks,
        progress=tell,
        companions=companions,
    )


def write_model(run: Run, draft: Draft, network: nn.Module, history: FitResult | None) -> None:
    """Put a trained network, its test predictions and its history into a draft."""
    network.eval()
    save_weights(draft.folder / WEIGHTS, network, metadata={"edgekd.spec": run.spec.model_dump_json()})
    write_predictions(draft, _predict(run, network, run.data.test))
    write_history(draft, history)
    draft.spec = run.spec
    draft.metrics |= {"parameters": sum(parameter.numel() for parameter in network.parameters())}


def write_predictions(draft: Draft, predictions: Predictions, name: str = PREDICTIONS) -> None:
    """Keep the test logits, so that every later comparison is paired, and the accuracy in the manifest."""
    np.savez_compressed(draft.folder / name, logits=predictions.logits, labels=predictions.labels)
    draft.metrics |= {"test_accuracy": accuracy(predictions).value, "test_n": predictions.n}


def write_history(draft: Draft, history: FitResult | None) -> None:
    """Keep what training did, epoch by epoch."""
    if history is not None:
        (draft.folder / HISTORY).write_text(history.model_dump_json(indent=1), encoding="utf-8")


def predictions_of(artifact: Artifact, name: str = PREDICTIONS) -> Predictions:
    """The test predictions kept in an artifact."""
    with np.load(artifact.file(name), allow_pickle=False) as arrays:
        return Predictions(arrays["logits"], arrays["labels"])


def history_of(artifact: Artifact) -> FitResult | None:
    """The training history kept in an artifact, if it was trained."""
    if HISTORY not in artifact.manifest.files:
        return None
    return FitResult.model_validate_json(artifact.file(HISTORY).read_bytes())


def companions_of(artifact: Artifact) -> dict[str, torch.Tensor]:
    """What trained beside a student, if anything did."""
    return read_weights(artifact.file(COMPANIONS)) if COMPANIONS in artifact.manifest.files else {}


def networks_of(run: Run, mentors: Sequence[Mentor]) -> list[nn.Module]:
    """The networks that are learned from, in evaluation mode."""
    return [network_of(run, one.settings, one.artifact) for one in mentors]


def network_of(run: Run, settings: ModelSettings, artifact: Artifact) -> nn.Module:
    """The network of a checkpoint, or a ready-made one, in evaluation mode."""
    network = run.build(settings, run.recipe.seed)
    if not is_ready_made(run, settings):
        load_weights(network, artifact.file(WEIGHTS))
    return network.eval()


def example_inputs(run: Run, count: int) -> torch.Tensor:
    """The first training inputs, normalised, shape (count, C, H, W)."""
    ids = torch.arange(min(count, len(run.data.train)))
    return next(evaluation_batches(run.data.train, run.data.preprocessing, ids=ids)).inputs


def check_neighbour(run: Run, weights: Path) -> None:
    """If a weights file lies in a sealed artifact, its data must have been like this recipe's.

    Raises:
        MismatchError: other classes or preprocessing; names both sides.
    """
    try:
        neighbour = open_artifact(weights.parent, verify=False)
    except ArtifactError:
        return
    if neighbour.manifest.spec is not None:
        check_compatible(run.spec, neighbour.manifest.spec)


def _train_alone(run: Run, network: nn.Module, settings: TrainSettings, seed: int, checkpoint: Path) -> FitResult:
    method: Method = run._load("methods", "alone")[0](network, [], weighted_losses(run, _ALONE))
    return training(run, method, settings, seed=seed, checkpoint=checkpoint)


def initial(run: Run, settings: ModelSettings, seed: int) -> nn.Module:
    """A network as its training starts: fresh, from a weights file, or from the trained teacher's weights."""
    network = run.build(settings, seed)
    if settings.weights == FROM_TEACHER:
        load_weights(network, run.made["teacher"].file(WEIGHTS))
    elif settings.weights is not None:
        load_weights(network, _weights_path(run, settings))
    return network


def _predict(run: Run, network: nn.Module, samples: Any) -> Predictions:
    batches = evaluation_batches(samples, run.data.preprocessing, device=run.device)
    if not isinstance(network, torch.fx.GraphModule):
        network.to(run.device)
    return predict(lambda inputs: logits_of(network(inputs)), batches)


def _computing(run: Run) -> dict[str, Any]:
    """What else changes a trained network: augmentation and arithmetic."""
    return {
        "augment": run.recipe.data.augment.model_dump(mode="json"),
        "precision": run.recipe.compute.precision,
        "device": run.device.type,
    }


def _distilling(run: Run) -> dict[str, Any]:
    """The method and its losses, as plain values; what has its default is left out, as it was before it was there."""
    distill = run.recipe.distill
    more = {key: value for key in ("method_options", "export") if (value := getattr(distill, key)) not in ({}, "best")}
    return {"method": distill.method, "losses": [loss.model_dump(mode="json") for loss in distill.losses], **more}


def _weights_path(run: Run, settings: ModelSettings) -> Path:
    return run.base_folder / str(settings.weights)


def _student(run: Run) -> dict[str, Any]:
    """The student's network and where it starts; as for the teacher, the content of its weights decides."""
    settings = run.recipe.student
    if settings.weights is None or settings.weights == FROM_TEACHER:
        return {"student": settings.model_dump(mode="json")}
    start = {"weights": _file_hash(_weights_path(run, settings))}
    return {"student": settings.model_dump(mode="json"), **start}


def _file_hash(path: Path) -> str | None:
    # a missing file is reported by load_weights, with the words for it
    return file_hash(path) if path.is_file() else None


def as_json(values: Any) -> str:
    """Plain values as indented JSON."""
    return json.dumps(values, indent=1)
