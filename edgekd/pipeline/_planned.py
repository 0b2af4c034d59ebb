"""Which stages a run will go through and about how much work each is, for a progress display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekd.pipeline import Stage
    from edgekd.recipe import Recipe

__all__ = ["PlannedStage", "planned", "planned_sweep"]


@dataclass(frozen=True)
class PlannedStage:
    """One stage to come.

    Args:
        epochs: its training, in epochs of the student alone; other epochs count for what they cost beside one.
        seconds: its work that does not depend on the length of training, roughly.
    """

    epochs: float = 0.0
    seconds: float = 0.0


# beside an epoch of the student alone; seen on the examples, good enough to say how long a run will take
_TEACHER, _DISTILL, _QUANTIZATION_AWARE = 2.0, 1.7, 4.0
_LOAD, _CALIBRATE, _EXPORT, _BENCH = (PlannedStage(seconds=seconds) for seconds in (1.0, 5.0, 8.0, 15.0))
_QUALITY = PlannedStage(seconds=3.0)
_PLACE, _MIX = PlannedStage(seconds=60.0), PlannedStage(seconds=60.0)


def planned(recipe: Recipe, until: Stage) -> dict[str, PlannedStage]:
    """The stages of a run in order, by the names that a watcher is told.

    A target that cannot be measured on this machine has a stage here that will not come.
    """
    train, distill = recipe.teacher.train, recipe.distill
    trained = PlannedStage(epochs=_TEACHER * train.epochs)
    stages = {"teacher": trained if recipe.teacher.weights is None else _LOAD}
    for index, one in enumerate(recipe.teachers, start=2):
        epochs = PlannedStage(epochs=_TEACHER * one.train.epochs)
        stages[f"teacher-{index}"] = epochs if one.weights is None else _LOAD
    for index, assistant in enumerate(recipe.assistants, start=1):
        stages[f"assistant-{index}"] = PlannedStage(epochs=_TEACHER * (assistant.train or distill.train).epochs)
    if until == "train":
        return stages
    for index in range(distill.repeats):
        suffix = f"-seed{recipe.seed + index}" if index else ""
        if distill.baseline:
            stages[f"student_alone{suffix}"] = PlannedStage(epochs=distill.train.epochs)
        if distill.cache is not None and not index:
            kept = min(distill.cache.epochs or distill.train.epochs, distill.train.epochs)
            stages["cache"] = PlannedStage(epochs=(_DISTILL - 1.0) * kept)
        pace = _DISTILL if distill.cache is None else 1.0
        stages[f"student{suffix}"] = PlannedStage(epochs=pace * distill.train.epochs)
    stages["quality"] = _QUALITY
    if until == "distill":
        return stages
    for target in recipe.export.targets:
        stages |= {f"{name}-{target}": stage for name, stage in _of_target(recipe, until).items()}
    return stages


def planned_sweep(recipes: Sequence[Recipe]) -> dict[str, PlannedStage]:
    """The stages of a sweep over these recipes, without those that an earlier one has made."""
    stages: dict[str, PlannedStage] = {}
    made = set()
    for number, recipe in enumerate(recipes, start=1):
        mentors = (recipe.teacher, recipe.teachers, recipe.assistants)
        alone = (recipe.student, recipe.distill.train, recipe.data.augment, recipe.compute)
        for name, stage in planned(recipe, "distill").items():
            decides = alone if name.startswith("student_alone") else recipe if name.startswith("student") else mentors
            if name != "quality" and (name, repr(decides)) not in made:
                made.add((name, repr(decides)))
                stages[f"{number}/{len(recipes)} {name}"] = stage
    return stages


def _of_target(recipe: Recipe, until: Stage) -> dict[str, PlannedStage]:
    chosen = recipe.quantize
    stages = {"placement": _PLACE} if chosen.placement_search else {}
    stages["int8_ptq"] = _CALIBRATE
    if recipe.quantize.mode == "qat":
        epochs = recipe.quantize.epochs or math.ceil(recipe.distill.train.epochs / 10)
        stages["int8"] = PlannedStage(epochs=_QUANTIZATION_AWARE * epochs, seconds=_CALIBRATE.seconds)
    if chosen.max_drop is not None:
        stages["mixed"] = _MIX
    if until != "quantize":
        stages["export"] = _EXPORT
        if until != "export":
            stages["bench"] = _BENCH
    return stages
