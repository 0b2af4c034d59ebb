"""The plan of a run: everything that can be checked before the work, and what would be done."""

from __future__ import annotations

from typing import Any

from torch import nn

from edgekd.errors import BackendMissing, UsageError, did_you_mean
from edgekd.methods._base import Method
from edgekd.pipeline._caching import check_cache
from edgekd.pipeline._mentors import wanted
from edgekd.pipeline._ready_made import FROM_TEACHER, check_roles, check_same_structure, notes, weight_count
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import check_neighbour, example_inputs, run_method
from edgekd.recipe import ModelSettings
from edgekd.weights import load_weights

__all__ = ["plan", "ready"]


def ready(run: Run, *, distills: bool, exports: bool) -> None:
    """Find before the first step what would stop a later one: weights, shapes, taps, packages.

    Args:
        run: not started.
        distills: it goes further than the teacher.
        exports: it goes as far as the targets' files.

    Raises:
        EdgeKDError: whatever would stop the run.
    """
    recipe = run.recipe
    _ = run.device  # looked for here, so that a missing one is told before the data is read
    check_roles(run)
    for note in notes(run):
        run.watcher.message(note)
    mentors = [_loaded(run, settings) for settings in wanted(run).values()]
    if distills:
        check_cache(run, mentors)
        student = _loaded(run, recipe.student)
        for losses in filter(None, (recipe.distill.losses, recipe.quantize.losses)):
            method = run_method(run, student, mentors, losses, peer=lambda index: run.build(recipe.student, index))
            method.prepare(example_inputs(run, 2))
            _exportable(run, method)
        if recipe.quantize.float_layers:
            from edgekd import quantize  # seconds of imports that a training does not need
            from edgekd.targets._groups import chosen, groups

            folded = quantize.folded(student.cpu().eval(), example_inputs(run, 2))
            chosen(groups(folded), recipe.quantize.float_layers)
    for name in recipe.export.targets if exports else ():
        # a file that is not ONNX is written by the target's own library
        if run.target(name).suffix != ".onnx" and (missing := run.target(name).missing()) is not None:
            raise BackendMissing(missing)
    if exports and recipe.export.tensorrt.engine == "required" and "tensorrt" in recipe.export.targets:
        missing = run.target("tensorrt").missing()
        if missing is not None:
            raise BackendMissing(missing)


def _exportable(run: Run, method: Method) -> None:
    asked, found = run.recipe.distill.export, list(method.candidates())
    if asked != "best" and asked not in found:
        raise UsageError(f"distill.export: there is no network '{asked}'. {did_you_mean(asked, found)}")


def _loaded(run: Run, settings: ModelSettings) -> nn.Module:
    network = run.build(settings, run.recipe.seed)
    if settings.weights == FROM_TEACHER:
        check_same_structure(run, settings, network)
    elif settings.weights is not None:
        path = run.base_folder / settings.weights
        check_neighbour(run, path)
        load_weights(network, path)
    return network


def plan(run: Run) -> dict[str, Any]:
    """Read the data, build both networks, join them by the recipe's losses, and ask every target what it lacks."""
    from edgekd.pipeline._qat import qat_settings
    from edgekd.pipeline._quantize_plan import reduced_range

    recipe = run.recipe
    ready(run, distills=True, exports=True)
    teacher, student = run.build(recipe.teacher, recipe.seed), run.build(recipe.student, recipe.seed)
    targets = {}
    for name in recipe.export.targets:
        target = run.target(name)
        targets[name] = {
            "missing": target.missing(),
            "not_measured_here": target.absent_here(),
            "reduce_range": reduced_range(run, name),
        }
    return {
        "name": recipe.name,
        "data": {
            "train": len(run.data.train),
            "val": len(run.data.val),
            "test": len(run.data.test),
            "classes": len(run.data.classes),
            "input": list(run.data.preprocessing.input_shape),
        },
        "parameters": {
            "teacher": weight_count(teacher),
            "student": weight_count(student),
        },
        "device": run.device.type,
        "quantization_aware_training": qat_settings(run).model_dump(mode="json")
        if recipe.quantize.mode == "qat"
        else None,
        "targets": targets,
    }
