"""Operators that stay float because somebody chose so: they are no failed export, and are listed as chosen."""

from __future__ import annotations

from pathlib import Path

import onnx
from torch.fx import GraphModule

from edgekd import quantize
from edgekd._group_costs import grouped
from edgekd.artifact import Artifact
from edgekd.pipeline._quantize_plan import Plan
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import example_inputs, network_of
from edgekd.report import Fusion
from edgekd.targets._annotate import TargetQuantizer
from edgekd.targets._groups import groups

__all__ = ["chosen_groups", "without_chosen"]


def chosen_groups(run: Run, plan: Plan, student: Artifact) -> set[str]:
    """Groups that the target's own rules make int8 and the plan does not."""
    usual = run.target(plan.target).numerics
    numerics = plan.numerics(run)
    if numerics == usual and not plan.float_layers:
        return set()
    network = network_of(run, run.recipe.student, student).cpu()
    folded = quantize.folded(network, example_inputs(run, 2))
    calibrator = run.member("calibration", "minmax")
    shared = {"calibrator": calibrator, "reduce_range": plan.reduce_range}
    full = TargetQuantizer(usual, **shared).quantized_groups(folded)
    kept = TargetQuantizer(numerics, **shared, float_layers=plan.float_layers).quantized_groups(folded)
    return set(full) - set(kept)


def without_chosen(fusion: Fusion, chosen: set[str], program: GraphModule, path: Path) -> Fusion:
    """An audit's row with the operators of chosen groups taken out of what the target could have run as int8.

    Args:
        fusion: of the file.
        chosen: names of groups.
        program: what the file was exported from.
        path: the file.
    """
    if not chosen or path.suffix != ".onnx":
        return fusion
    marked = grouped(path, groups(program))
    original, renamed = onnx.load(path), onnx.load_model_from_string(marked.content)
    by_choice = {}
    for node, mark in zip(original.graph.node, renamed.graph.node, strict=True):
        number = marked.number(mark.name)
        if number is not None and marked.names[number] in chosen:
            by_choice[node.name or node.output[0]] = marked.names[number]
    islands = [one for one in fusion.float_islands if one.name not in by_choice]
    quantizable = fusion.quantizable - (len(fusion.float_islands) - len(islands))
    return fusion.model_copy(
        update={
            "float_islands": islands,
            "quantizable": quantizable,
            "coverage": fusion.int8 / quantizable if quantizable else 1.0,
            "by_choice": sorted(chosen),
        }
    )
