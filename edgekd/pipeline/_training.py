"""The float stages: the teacher, the student that learns from it, and the same student alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from edgekd.methods._base import Method, WeightedLoss
from edgekd.pipeline._run import Run
from edgekd.recipe import AugmentSettings, LossSettings, ModelSettings, TrainSettings
from edgekd.taps import logits_of
from edgekd.weights import load_weights, save_weights

__all__ = [
    "WEIGHTS",
    "network_of",
    "predictions_of",
    "student_stages",
    "teacher_stage",
    "training",
    "weighted_losses",
    "write_model",
]

WEIGHTS, PREDICTIONS, HISTORY = "model.safetensors", "predictions.npz", "history.json"
_ALONE = [LossSettings(name="cross_entropy", weight=1.0)]


def teacher_stage(run: Run) -> Artifact:
    """The teacher: trained by the recipe, or taken from its weights file."""
    settings = run.recipe.teacher
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

    return run.stage("teacher", kind="checkpoint", settings=shared, parents={}, make=make)


def student_stages(run: Run, teacher: Artifact) -> tuple[Artifact, Artifact | None]:
    """The distilled student and the student alone; repeats with other seeds are made too.

    Returns:
        The first seed's student, which goes on, and the first seed's student alone, if the recipe wants it.
    """
    students, alone = [], []
    for index in range(run.recipe.distill.repeats):
        suffix = f"-seed{run.recipe.seed + index}" if index else ""
        if run.recipe.distill.baseline:
            alone.append(_alone(run, f"student_alone{suffix}", run.recipe.seed + index))
        students.append(_distilled(run, f"student{suffix}", teacher, run.recipe.seed + index))
    return students[0], alone[0] if alone else None


def _alone(run: Run, name: str, seed: int) -> Artifact:
    settings = {
        **_student(run),
        "train": run.recipe.distill.train.model_dump(mode="json"),
        "seed": seed,
        **_computing(run),
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        network = _initial(run, run.recipe.student, seed)
        history = _train_alone(run, network, run.recipe.distill.train, seed, checkpoint)
        write_model(run, draft, network, history)

    return run.stage(name, kind="checkpoint", settings=settings, parents={}, make=make)


def _distilled(run: Run, name: str, teacher: Artifact, seed: int) -> Artifact:
    distill = run.recipe.distill
    settings = {
        **_student(run),
        "method": distill.method,
        "losses": [loss.model_dump(mode="json") for loss in distill.losses],
        "train": distill.train.model_dump(mode="json"),
        "seed": seed,
        **_computing(run),
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        network = _initial(run, run.recipe.student, seed)
        method = run_method(
            run, distill.method, network, [network_of(run, run.recipe.teacher, teacher)], distill.losses
        )
        history = training(run, method, distill.train, seed=seed, checkpoint=checkpoint)
        write_model(run, draft, network, history)

    return run.stage(name, kind="checkpoint", settings=settings, parents={"teacher": teacher}, make=make)


def run_method(
    run: Run, name: str, student: nn.Module, teachers: Sequence[nn.Module], losses: Sequence[LossSettings]
) -> Method:
    """A method of the catalog around a student."""
    member, _ = run._load("methods", name)
    method: Method = member(student, teachers, weighted_losses(run, losses))
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


def network_of(run: Run, settings: ModelSettings, artifact: Artifact) -> nn.Module:
    """The network of a checkpoint, in evaluation mode."""
    network = run.build(settings, run.recipe.seed)
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
    method = run_method(run, "alone", network, [], _ALONE)
    return training(run, method, settings, seed=seed, checkpoint=checkpoint)


def _initial(run: Run, settings: ModelSettings, seed: int) -> nn.Module:
    network = run.build(settings, seed)
    if settings.weights is not None:
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


def _weights_path(run: Run, settings: ModelSettings) -> Path:
    return run.base_folder / str(settings.weights)


def _student(run: Run) -> dict[str, Any]:
    """The student's network and where it starts; as for the teacher, the content of its weights decides."""
    settings = run.recipe.student
    start = {} if settings.weights is None else {"weights": _file_hash(_weights_path(run, settings))}
    return {"student": settings.model_dump(mode="json"), **start}


def _file_hash(path: Path) -> str | None:
    # a missing file is reported by load_weights, with the words for it
    return file_hash(path) if path.is_file() else None


def as_json(values: Any) -> str:
    """Plain values as indented JSON."""
    return json.dumps(values, indent=1)
