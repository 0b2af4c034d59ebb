"""The int8 stages of a target: placement, calibration, quantization-aware distillation, layers back to float."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from edgekd import _group, quantize
from edgekd._transfer import transfer, transfer_weights
from edgekd.artifact import Artifact, Draft
from edgekd.batches import EvaluationBatch, evaluation_batches
from edgekd.datasets._base import Samples
from edgekd.engine import FitResult
from edgekd.evaluate import Predictions, accuracy, predict_shared
from edgekd.pipeline._calibration_samples import chosen_ids
from edgekd.pipeline._kept_statistics import RunStatistics
from edgekd.pipeline._mentors import Mentor, parents_of
from edgekd.pipeline._mixing import mixed_stage
from edgekd.pipeline._placing import placement_stage
from edgekd.pipeline._qat import augment_of, qat_settings, train
from edgekd.pipeline._quantize_plan import Plan, losses_of, nests, plan_of, planned, prepared, restored, taps_of
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import (
    WEIGHTS,
    example_inputs,
    network_of,
    write_history,
    write_predictions,
)
from edgekd.weights import save_weights

__all__ = ["quantize_stages"]


def quantize_stages(
    run: Run, target: str, mentors: Sequence[Mentor], student: Artifact, first: Artifact | None
) -> Artifact:
    """The int8 rungs of one target; the last one that the recipe's mode wants goes on.

    Args:
        run: the run.
        target: whose.
        mentors: float; who the student learned from.
        student: float.
        first: the quantized artifact of the recipe's first target, None for that target itself.
    """
    chosen, teacher = run.recipe.quantize, mentors[0].artifact
    plan = _group.from_main(lambda: planned(run, target))  # it depends on the processor, and hosts may differ
    again = None if first is None or chosen.mode == "ptq" else _again(run, plan, plan_of(first))
    if again is not None and first is not None:
        ptq = _ptq(run, plan, teacher, student)
        # what was put back to float for the first target stays so: its codes are what is shipped
        return _second(run, again, student, ptq, first)
    if chosen.placement_search:
        plan = placement_stage(run, plan, student)
    last = _ptq(run, plan, teacher, student)
    if chosen.mode == "qat":
        last = _qat(run, plan, mentors, student, last)
    if chosen.max_drop is not None:
        last = mixed_stage(run, student, last, write=_write)
    return last


def _ptq(run: Run, plan: Plan, teacher: Artifact, student: Artifact) -> Artifact:
    chosen = run.recipe.quantize
    settings = {
        "plan": plan.model_dump(mode="json"),
        "calibrator": chosen.calibrator,
        "calibrator_options": chosen.calibrator_options,
        "calibration_samples": chosen.calibration_samples,
        "selection": chosen.selection,
        "corrections": [one.model_dump(mode="json") for one in chosen.corrections],
        "taps": list(taps_of(run)),
        "seed": run.recipe.seed,
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        ids = chosen_ids(run, teacher)
        done = quantize.post_training(
            network_of(run, run.recipe.student, student).cpu(),
            example_inputs(run, 8),
            _calibration(run, ids),
            numerics=plan.numerics(run),
            calibrator=run.member("calibration", chosen.calibrator, chosen.calibrator_options),
            reduce_range=plan.reduce_range,
            taps=taps_of(run),
            float_layers=plan.float_layers,
            corrections=[run.member("corrections", one.name, one.options) for one in chosen.corrections],
            seed=run.recipe.seed,
            memory=RunStatistics.of(run, ids),
        )
        draft.metrics |= {"corrections": [dataclasses.asdict(one) for one in done.corrections]}
        _write(run, draft, done.graph, None, plan)

    parents = {"student": student}
    if chosen.selection == "k_center":
        parents["teacher"] = teacher
    return run.stage(
        f"int8_ptq-{plan.target}", kind="quantized", settings=settings, parents=parents, make=make, everywhere=True
    )


def _qat(run: Run, plan: Plan, mentors: Sequence[Mentor], student: Artifact, ptq: Artifact) -> Artifact:
    settings_of_training = qat_settings(run)
    chosen = run.recipe.quantize
    settings = {
        "plan": plan.model_dump(mode="json"),
        "train": settings_of_training.deciding(),
        "losses": [loss.model_dump(mode="json") for loss in losses_of(run)],
        "method": run.recipe.distill.method,
        **({"method_options": run.recipe.distill.method_options} if run.recipe.distill.method_options else {}),
        "ranges": chosen.ranges,
        "scale_rate": chosen.scale_rate,
        "dampening": chosen.dampening,
        "freeze_above": chosen.freeze_above,
        "freeze_observers_at": chosen.freeze_observers_at,
        "augment": augment_of(run).model_dump(mode="json"),
        "seed": run.recipe.seed,
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        start = restored(run, ptq, student)
        graph = copy.deepcopy(start)
        history = train(run, graph, mentors, student, settings_of_training, checkpoint)
        scores = {"int8_ptq": validate(run, start), "int8": validate(run, graph)}
        # validation picks, never test: training that did harm is undone, and the report says so
        kept = "int8" if scores["int8"] >= scores["int8_ptq"] else "int8_ptq"
        draft.metrics |= {"val_accuracy": scores, "kept": kept}
        trained = plan.model_copy(update={"made_by": "trained"})
        _write(run, draft, graph if kept == "int8" else start, history, trained)

    parents = {**parents_of(mentors), "student": student, "int8_ptq": ptq}
    return run.stage(
        f"int8-{plan.target}", kind="quantized", settings=settings, parents=parents, make=make, everywhere=True
    )


def _again(run: Run, plan: Plan, source: Plan) -> Plan | None:
    """The plan by which another target's training is used again: its codes, or its weights; None to train."""
    if nests(source.numerics(run), plan.numerics(run)):
        # the same codes need the same bits in the same places
        kept = {"reduce_range": source.reduce_range, "float_layers": source.float_layers, "operators": source.operators}
        return plan.model_copy(update={"made_by": "re-emitted", "made_for": source.made_for, **kept})
    if run.recipe.quantize.other_grids == "retrain":
        return None
    return plan.model_copy(update={"made_by": "re-calibrated", "made_for": source.made_for})


def _second(run: Run, plan: Plan, student: Artifact, ptq: Artifact, first: Artifact) -> Artifact:
    def make(draft: Draft, checkpoint: Path) -> None:
        origin = restored(run, first, student)
        graph = prepared(run, plan, network_of(run, run.recipe.student, student))
        transfer_weights(origin, graph)
        quantize.calibrate(graph, _calibration(run, chosen_ids(run, None))())
        if plan.made_by == "re-emitted":
            # all that the first target knows; what only this one quantizes keeps the range just calibrated
            draft.metrics |= {"calibrated_here": transfer(origin, graph)}
        quantize.set_phase(graph, "frozen")
        _write(run, draft, graph, None, plan)

    settings = {"plan": plan.model_dump(mode="json"), "seed": run.recipe.seed}
    parents = {"student": student, "int8_ptq": ptq, "trained": first}
    return run.stage(
        f"int8-{plan.target}", kind="quantized", settings=settings, parents=parents, make=make, everywhere=True
    )


def _calibration(run: Run, ids: torch.Tensor) -> Callable[[], Iterator[torch.Tensor]]:
    """Gives the batches of these samples anew at every call."""
    data = run.data

    def batches() -> Iterator[torch.Tensor]:
        done = 0
        for batch in evaluation_batches(data.train, data.preprocessing, batch_size=64, ids=ids):
            yield batch.inputs
            done += len(batch.inputs)
            run.watcher.progress(done, len(ids), "calibration")

    return batches


def _write(run: Run, draft: Draft, graph: GraphModule, history: FitResult | None, plan: Plan) -> None:
    program = quantize.convert(graph, example_inputs(run, 2), numerics=plan.numerics(run))
    save_weights(draft.folder / WEIGHTS, graph, metadata={"edgekd.spec": run.spec.model_dump_json()})
    (draft.folder / "ranges.json").write_text(json.dumps(quantize.ranges(graph), indent=1), encoding="utf-8")
    write_predictions(draft, _predicted(run, program, run.data.test))
    write_history(draft, history)
    draft.spec = run.spec
    metrics: dict[str, Any] = {
        "plan": plan.model_dump(mode="json"),
        "reduce_range": plan.reduce_range,
        "parameters": sum(parameter.numel() for parameter in graph.parameters()),
    }
    draft.metrics |= metrics


def validate(run: Run, graph: GraphModule) -> float:
    """Accuracy of a prepared graph on the validation split, in [0, 1]."""
    return accuracy(_predicted(run, lambda inputs: graph(inputs)[0], run.data.val, device=run.device)).value


def _predicted(
    run: Run,
    forward: Callable[[torch.Tensor], torch.Tensor],
    samples: Samples,
    *,
    device: torch.device | str = "cpu",
) -> Predictions:
    def batches(ids: torch.Tensor) -> Iterator[EvaluationBatch]:
        return evaluation_batches(samples, run.data.preprocessing, device=device, ids=ids)

    return predict_shared(forward, len(samples), batches)
