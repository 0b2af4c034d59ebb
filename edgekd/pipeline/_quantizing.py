"""The int8 stages: post-training quantization, then quantization-aware distillation from the float teacher."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.artifact import Artifact, Draft
from edgekd.batches import calibration_ids, evaluation_batches
from edgekd.catalog import CATALOGS
from edgekd.engine import FitResult, Hooks
from edgekd.evaluate import accuracy, predict
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import (
    WEIGHTS,
    example_inputs,
    network_of,
    run_method,
    training,
    weighted_losses,
    write_history,
    write_predictions,
)
from edgekd.recipe import AugmentSettings, LossSettings, TrainSettings
from edgekd.taps import TupleOutputs
from edgekd.weights import read_weights, save_weights

__all__ = ["program_of", "quantize_stages", "reduced_range"]


def quantize_stages(run: Run, target: str, teacher: Artifact, student: Artifact) -> Artifact:
    """Both int8 rungs of one target; the last one that the recipe's mode wants goes on."""
    ptq = _ptq(run, target, student)
    return ptq if run.recipe.quantize.mode == "ptq" else _qat(run, target, teacher, student, ptq)


def reduced_range(run: Run, target: str) -> bool:
    """Whether this target's weights give up a bit, by the recipe or by what this processor does."""
    asked = run.recipe.quantize.reduce_range
    if target != "onnxruntime_x86":
        return False
    if asked != "auto":
        return asked
    device = CATALOGS["devices"].load("cpu").member
    return device(device.Options()).fingerprint().get("has_vnni") is False


def program_of(run: Run, target: str, artifact: Artifact, student: Artifact) -> GraphModule:
    """The int8 program of a quantized artifact, giving logits only."""
    graph = _restored(run, target, artifact, student)
    return quantize.convert(graph, example_inputs(run, 2), numerics=run.target(target).numerics)


def _ptq(run: Run, target: str, student: Artifact) -> Artifact:
    chosen = run.recipe.quantize
    settings = {
        "target": target,
        "calibrator": chosen.calibrator,
        "calibrator_options": chosen.calibrator_options,
        "calibration_samples": chosen.calibration_samples,
        "reduce_range": reduced_range(run, target),
        "taps": list(_taps(run)),
        "seed": run.recipe.seed,
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        graph = _prepared(run, target, network_of(run, run.recipe.student, student))
        _calibrate(run, graph)
        _write(run, draft, graph, None, settings)

    return run.stage(f"int8_ptq-{target}", kind="quantized", settings=settings, parents={"student": student}, make=make)


def _qat(run: Run, target: str, teacher: Artifact, student: Artifact, ptq: Artifact) -> Artifact:
    train = qat_settings(run)
    chosen = run.recipe.quantize
    settings = {
        "target": target,
        "train": train.model_dump(mode="json"),
        "losses": [loss.model_dump(mode="json") for loss in _losses(run)],
        "method": run.recipe.distill.method,
        "freeze_observers_at": chosen.freeze_observers_at,
        "augment": _augment(run).model_dump(mode="json"),
        "seed": run.recipe.seed,
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        start = _restored(run, target, ptq, student)
        graph = copy.deepcopy(start)
        history = _train(run, graph, teacher, train, checkpoint)
        scores = {"int8_ptq": _validate(run, start), "int8": _validate(run, graph)}
        # validation picks, never test: training that did harm is undone, and the report says so
        kept = "int8" if scores["int8"] >= scores["int8_ptq"] else "int8_ptq"
        draft.metrics |= {"val_accuracy": scores, "kept": kept}
        _write(run, draft, graph if kept == "int8" else start, history, settings)

    parents = {"teacher": teacher, "student": student, "int8_ptq": ptq}
    return run.stage(f"int8-{target}", kind="quantized", settings=settings, parents=parents, make=make)


def qat_settings(run: Run) -> TrainSettings:
    """The training run of quantization-aware distillation, derived from the student's unless the recipe says."""
    chosen, student = run.recipe.quantize, run.recipe.distill.train
    return student.model_copy(
        update={
            "epochs": chosen.epochs or math.ceil(student.epochs / 10),
            "optimizer": chosen.optimizer,
            "lr": chosen.lr,
            "clip_grad_norm": chosen.clip_grad_norm,
            "batch_size": chosen.batch_size or student.batch_size,
            "schedule": "cosine",
            "warmup_epochs": 0.0,
            # folded weights carry the scale of batch normalisation: shrinking them is no regularisation any more
            "weight_decay": 0.0,
            "label_smoothing": 0.0,
            "ema_decay": None,
        }
    )


def _train(run: Run, graph: GraphModule, teacher: Artifact, settings: TrainSettings, checkpoint: Path) -> FitResult:
    freeze_at = run.recipe.quantize.freeze_observers_at
    student = TupleOutputs(graph, _taps(run))
    method = run_method(
        run, run.recipe.distill.method, student, [network_of(run, run.recipe.teacher, teacher)], _losses(run)
    )

    def on_step(progress: float) -> None:
        quantize.set_phase(graph, "track" if progress < freeze_at else "frozen")

    def no_modes(module: nn.Module, training: bool) -> None:
        """A prepared graph has none; between epochs its ranges stand still, so that validation moves nothing."""
        quantize.set_phase(graph, "frozen")

    quantize.set_phase(graph, "frozen")
    result = training(
        run,
        method,
        settings,
        seed=run.recipe.seed,
        checkpoint=checkpoint,
        augment=_augment(run),
        hooks=Hooks(on_step=on_step, set_training=no_modes),
    )
    quantize.set_phase(graph, "frozen")
    return result


def _prepared(run: Run, target: str, network: nn.Module) -> GraphModule:
    return quantize.prepare(
        network.cpu(),
        example_inputs(run, 8),
        numerics=run.target(target).numerics,
        calibrator=run.member("calibration", run.recipe.quantize.calibrator, run.recipe.quantize.calibrator_options),
        reduce_range=reduced_range(run, target),
        taps=_taps(run),
    )


def _restored(run: Run, target: str, artifact: Artifact, student: Artifact) -> GraphModule:
    graph = _prepared(run, target, network_of(run, run.recipe.student, student))
    quantize.restore(graph, read_weights(artifact.file(WEIGHTS)))
    return graph


def _calibrate(run: Run, graph: GraphModule) -> None:
    data, wanted = run.data, run.recipe.quantize.calibration_samples
    ids = calibration_ids(data.train, wanted, seed=run.recipe.seed)

    def batches() -> Iterator[torch.Tensor]:
        done = 0
        for batch in evaluation_batches(data.train, data.preprocessing, batch_size=64, ids=ids):
            yield batch.inputs
            done += len(batch.inputs)
            run.watcher.progress(done, len(ids), "calibration")

    quantize.calibrate(graph, batches())


def _write(run: Run, draft: Draft, graph: GraphModule, history: FitResult | None, settings: dict[str, Any]) -> None:
    numerics = run.target(settings["target"]).numerics
    program = quantize.convert(graph, example_inputs(run, 2), numerics=numerics)
    save_weights(draft.folder / WEIGHTS, graph, metadata={"edgekd.spec": run.spec.model_dump_json()})
    (draft.folder / "ranges.json").write_text(json.dumps(quantize.ranges(graph), indent=1), encoding="utf-8")
    batches = evaluation_batches(run.data.test, run.data.preprocessing)
    write_predictions(draft, predict(program, batches))
    write_history(draft, history)
    draft.spec = run.spec
    draft.metrics |= {
        "reduce_range": bool(settings.get("reduce_range", reduced_range(run, settings["target"]))),
        "parameters": sum(parameter.numel() for parameter in graph.parameters()),
    }


def _validate(run: Run, graph: GraphModule) -> float:
    batches = evaluation_batches(run.data.val, run.data.preprocessing, device=run.device)
    return accuracy(predict(lambda inputs: graph(inputs)[0], batches)).value


def _losses(run: Run) -> list[LossSettings]:
    return run.recipe.quantize.losses or run.recipe.distill.losses


def _taps(run: Run) -> tuple[str, ...]:
    names = [tap for term in weighted_losses(run, _losses(run)) for tap in term.loss.student_taps()]
    return tuple(dict.fromkeys(names))


def _augment(run: Run) -> AugmentSettings:
    """Geometry stays; erasing and mixing would move the ranges away from what the device will see."""
    return run.recipe.data.augment.model_copy(update={"cutout": 0, "mixup": 0.0})
