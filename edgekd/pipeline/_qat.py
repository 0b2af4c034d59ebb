"""Quantization-aware distillation: a calibrated graph goes on training against the float teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.artifact import Artifact
from edgekd.calibration._fake_quantize import Phase
from edgekd.engine import FitResult, Hooks
from edgekd.pipeline._caching import Lessons, fill_cache, lessons, unfit
from edgekd.pipeline._mentors import Mentor
from edgekd.pipeline._quantize_plan import losses_of, taps_of
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import companions_of, network_of, networks_of, run_method, training
from edgekd.recipe import AugmentSettings, TrainSettings
from edgekd.taps import TupleOutputs

__all__ = ["augment_of", "qat_settings", "train"]


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


def augment_of(run: Run) -> AugmentSettings:
    """Geometry stays; erasing and mixing would move the ranges away from what the device will see."""
    return run.recipe.data.augment.model_copy(update={"cutout": 0, "mixup": 0.0})


def train(
    run: Run,
    graph: GraphModule,
    mentors: Sequence[Mentor],
    float_student: Artifact,
    settings: TrainSettings,
    checkpoint: Path,
) -> FitResult:
    """Train a calibrated graph in place; it ends in the phase `frozen`."""
    quantize.set_phase(graph, "frozen")
    if run.recipe.quantize.ranges == "learned":
        quantize.learn_ranges(graph, rate=run.recipe.quantize.scale_rate)
    guard = _guard(run, graph)
    with _lessons(run, mentors, settings) as given:
        method = run_method(
            run,
            TupleOutputs(graph, taps_of(run)),
            given.teachers,
            losses_of(run),
            peer=lambda index: network_of(run, run.recipe.student, float_student),
        )
        result = training(
            run,
            method,
            settings,
            seed=run.recipe.seed,
            checkpoint=checkpoint,
            augment=augment_of(run),
            hooks=_hooks(run, graph, guard),
            companions=companions_of(float_student),
            batches_seed=given.batches_seed,
            views=given.views,
        )
    if guard is not None:
        guard.close()
    quantize.settle_ranges(graph)
    quantize.set_phase(graph, "frozen")
    return result


@contextmanager
def _lessons(run: Run, mentors: Sequence[Mentor], settings: TrainSettings) -> Iterator[Lessons]:
    """The float student's cache where it is of the views that are shown now, else the networks."""
    reason = unfit(run, losses_of(run), settings, same_views=augment_of(run) == run.recipe.data.augment)
    if reason is not None:
        if run.recipe.distill.cache is not None:
            run.watcher.message(f"The int8 student learns from the teacher itself and not from the cache: {reason}.")
        yield Lessons(networks_of(run, mentors))
        return
    run.watcher.message("The int8 student learns from the cache of the teacher's answers.")
    fill_cache(run, mentors, settings, as_stage=False)
    with lessons(run, mentors, losses_of(run), settings) as given:
        yield given


def _hooks(run: Run, graph: GraphModule, guard: quantize.OscillationGuard | None) -> Hooks:
    """What moves the phases of a prepared graph while it trains."""
    chosen = run.recipe.quantize
    moving: Phase = "learn" if chosen.ranges == "learned" else "track"

    def on_step(progress: float) -> None:
        # learned scales learn to the end; followed ranges must stand still while the weights settle
        follows = chosen.ranges == "learned" or progress < chosen.freeze_observers_at
        quantize.set_phase(graph, moving if follows else "frozen")
        if guard is not None:
            guard.step(progress)

    def no_modes(module: nn.Module, training: bool) -> None:
        """A prepared graph has none; between epochs its ranges stand still, so that validation moves nothing."""
        quantize.set_phase(graph, "frozen")

    if guard is None:
        return Hooks(on_step=on_step, set_training=no_modes)
    return Hooks(on_step=on_step, set_training=no_modes, terms=guard.terms)


def _guard(run: Run, graph: GraphModule) -> quantize.OscillationGuard | None:
    chosen = run.recipe.quantize
    if chosen.dampening == 0.0 and chosen.freeze_above is None:
        return None
    options = quantize.OscillationOptions(dampening=chosen.dampening, freeze_above=chosen.freeze_above)
    return quantize.OscillationGuard(graph, options)
