"""Training a method of the recipe, and what a trained network's artifact holds: written here, read back here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.artifact import Artifact, Draft, open_artifact
from edgekd.batches import Batches, EvaluationBatch, evaluation_batches
from edgekd.engine import EpochRecord, FitResult, Hooks, Tick, check_compatible, fit
from edgekd.errors import ArtifactError
from edgekd.evaluate import Predictions, accuracy, predict_shared
from edgekd.losses._base import Split
from edgekd.methods._base import Context, Method, WeightedLoss
from edgekd.pipeline._mentors import Mentor
from edgekd.pipeline._ready_made import (
    FROM_TEACHER,
    is_ready_made,
)
from edgekd.pipeline._run import WEIGHTS, Run
from edgekd.pipeline._watching import note_of
from edgekd.recipe import (
    AugmentSettings,
    LossSettings,
    ModelSettings,
    TrainSettings,
)
from edgekd.taps import logits_of
from edgekd.weights import load_weights, read_weights, save_weights

__all__ = [
    "COMPANIONS",
    "PREDICTIONS",
    "WEIGHTS",
    "as_json",
    "check_neighbour",
    "companions_of",
    "example_inputs",
    "history_of",
    "initial",
    "network_of",
    "networks_of",
    "predicted",
    "predictions_of",
    "run_method",
    "training",
    "weighted_losses",
    "weights_path",
    "write_history",
    "write_model",
    "write_predictions",
]

PREDICTIONS, HISTORY = "predictions.npz", "history.json"
COMPANIONS = "companions.safetensors"
"""What trained beside a student: connectors, branches, peers, memories; the int8 student goes on with them."""


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
    batches_seed: int | None = None,
    views: int | None = None,
) -> FitResult:
    """Train a method on the run's training split, validating after every epoch.

    Args:
        run: the run.
        method: not prepared yet.
        settings: optimizer, schedule and length.
        seed: of everything random.
        checkpoint: see `engine.fit`.
        augment: None for the recipe's.
        hooks: see `engine.fit`.
        companions: see `engine.fit`.
        batches_seed: of order and augmentation; None for `seed`.
        views: epochs after which order and augmentation repeat; None for never.
    """
    data = run.data
    batches = Batches(
        data.train,
        batch_size=settings.batch_size,
        classes=len(data.classes),
        preprocessing=data.preprocessing,
        seed=seed if batches_seed is None else batches_seed,
        augment=augment or run.recipe.data.augment,
        device=run.device,
        label_smoothing=settings.label_smoothing,
        sampling=type(method).sampling,
        views=views,
    )

    def validate(network: nn.Module) -> float:
        return accuracy(predicted(run, network, data.val)).value

    def tell(tick: Tick) -> None:
        run.watcher.progress(tick.step, tick.steps, note_of(tick))
        if run.watching is not None:
            run.watching.on_step(tick)

    hooks = hooks or Hooks()

    def on_epoch(record: EpochRecord) -> None:
        if run.watching is not None:
            run.watching.on_epoch(record)
        hooks.on_epoch(record)

    return fit(
        method,
        batches,
        settings=settings,
        compute=run.recipe.compute,
        seed=seed,
        evaluate=validate,
        checkpoint=checkpoint,
        tag=checkpoint.name,
        hooks=dataclasses.replace(hooks, on_epoch=on_epoch),
        progress=tell,
        companions=companions,
    )


def write_model(run: Run, draft: Draft, network: nn.Module, history: FitResult | None) -> None:
    """Put a trained network, its test predictions and its history into a draft."""
    network.eval()
    save_weights(draft.folder / WEIGHTS, network, metadata={"edgekd.spec": run.spec.model_dump_json()})
    write_predictions(draft, predicted(run, network, run.data.test))
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


def initial(run: Run, settings: ModelSettings, seed: int) -> nn.Module:
    """A network as its training starts: fresh, from a weights file, or from the trained teacher's weights."""
    network = run.build(settings, seed)
    if settings.weights == FROM_TEACHER:
        load_weights(network, run.made["teacher"].file(WEIGHTS))
    elif settings.weights is not None:
        load_weights(network, weights_path(run, settings))
    return network


def predicted(run: Run, network: nn.Module, samples: Any) -> Predictions:
    """What a network answers on a split; of several processes, each computes its part."""
    if not isinstance(network, torch.fx.GraphModule):
        network.to(run.device)

    def batches(ids: torch.Tensor) -> Iterator[EvaluationBatch]:
        return evaluation_batches(samples, run.data.preprocessing, device=run.device, ids=ids)

    return predict_shared(lambda inputs: logits_of(network(inputs)), len(samples), batches)


def weights_path(run: Run, settings: ModelSettings) -> Path:
    return run.base_folder / str(settings.weights)


def as_json(values: Any) -> str:
    """Plain values as indented JSON."""
    return json.dumps(values, indent=1)
