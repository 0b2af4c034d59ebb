"""The plan of a run: everything that can be checked before the work, and what would be done."""

from __future__ import annotations

from typing import Any

from edgekd.pipeline._quantizing import qat_settings, reduced_range
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import check_neighbour, example_inputs, run_method
from edgekd.weights import load_weights

__all__ = ["plan"]


def plan(run: Run) -> dict[str, Any]:
    """Read the data, build both networks, join them by the recipe's losses, and ask every target what it lacks."""
    recipe = run.recipe
    teacher, student = run.build(recipe.teacher, recipe.seed), run.build(recipe.student, recipe.seed)
    for settings, network in ((recipe.teacher, teacher), (recipe.student, student)):
        if settings.weights is not None:
            path = run.base_folder / settings.weights
            check_neighbour(run, path)
            load_weights(network, path)
    method = run_method(run, recipe.distill.method, student, [teacher], recipe.distill.losses)
    method.prepare(example_inputs(run, 2))
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
            "teacher": sum(parameter.numel() for parameter in teacher.parameters()),
            "student": sum(parameter.numel() for parameter in student.parameters()),
        },
        "device": run.device.type,
        "quantization_aware_training": qat_settings(run).model_dump(mode="json")
        if recipe.quantize.mode == "qat"
        else None,
        "targets": targets,
    }
