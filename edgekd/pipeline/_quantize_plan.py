"""How one target's int8 student is prepared: what is recorded in its artifact, and read back by every later stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.artifact import Artifact
from edgekd.catalog import CATALOGS
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import WEIGHTS, example_inputs, network_of, weighted_losses
from edgekd.recipe import LossSettings
from edgekd.spec import Frozen
from edgekd.targets._base import Numerics, Target
from edgekd.weights import read_weights

__all__ = [
    "Plan",
    "losses_of",
    "nests",
    "plan_of",
    "planned",
    "prepared",
    "program_of",
    "reduced_range",
    "restored",
    "taps_of",
    "vnni_missing",
]


class Plan(Frozen):
    """What decides the structure of a prepared graph beside the network and its taps.

    Args:
        target: whose numerics.
        operators: names of the operators that run as int8.
        float_layers: names or patterns of layers that stay float.
        reduce_range: neighbouring weights share their 8 bits; see `edgekd.calibration._pair_sums`.
        made_by: how weights and ranges came about: calibrated here; trained here; the codes of another target, which
            this one's grid holds; another target's weights with ranges calibrated here.
        made_for: the target that they were trained for, this one or another.
    """

    target: str
    operators: list[str]
    float_layers: list[str]
    reduce_range: bool
    made_by: Literal["calibrated", "trained", "re-emitted", "re-calibrated"] = "calibrated"
    made_for: str

    def numerics(self, run: Run) -> Numerics:
        """The target's numerics with the operators of this plan."""
        numerics: Numerics = run.target(self.target).numerics
        return replace(numerics, operators=frozenset(self.operators))


def planned(run: Run, target: str) -> Plan:
    """What the recipe says about a target."""
    chosen = run.recipe.quantize
    return Plan(
        target=target,
        operators=sorted(run.target(target).numerics.operators),
        float_layers=chosen.float_layers,
        reduce_range=reduced_range(run, target),
        made_for=target,
    )


def plan_of(artifact: Artifact) -> Plan:
    """The plan that a quantized artifact was made by."""
    return Plan.model_validate(artifact.manifest.metrics["plan"])


def reduced_range(run: Run, target: str) -> bool:
    """Whether this target's weights give up a bit, by the recipe or by what this processor does."""
    asked = run.recipe.quantize.reduce_range
    if not run.target(target).sums_in_16_bits:
        return False
    return vnni_missing(run.target(target)) if asked == "auto" else asked


def vnni_missing(target: Target) -> bool:
    """Whether a target's sums of u8 * s8 products can saturate on this processor."""
    if not target.sums_in_16_bits:
        return False
    device = CATALOGS["devices"].load("cpu").member
    return device(device.Options()).fingerprint().get("has_vnni") is False


def nests(source: Numerics, target: Numerics) -> bool:
    """Whether a target can hold the very codes that were trained for another one.

    Unsigned and signed asymmetric codes differ by 128 and nothing else; an int32 bias is a float one, rounded; a pair
    more or less on a result is a range more or less. A fixed zero-point, float16 scales or Q/DQ pairs on inputs only
    make another grid.
    """
    alike = ("symmetric_activations", "half_scales", "quantize_outputs")
    return all(getattr(source, name) == getattr(target, name) for name in alike)


def prepared(run: Run, plan: Plan, network: nn.Module) -> GraphModule:
    """A student with a plan's quantizers in its graph, all off."""
    return quantize.prepare(
        network.cpu(),
        example_inputs(run, 8),
        numerics=plan.numerics(run),
        calibrator=run.member("calibration", run.recipe.quantize.calibrator, run.recipe.quantize.calibrator_options),
        reduce_range=plan.reduce_range,
        taps=taps_of(run),
        float_layers=plan.float_layers,
    )


def restored(run: Run, artifact: Artifact, student: Artifact) -> GraphModule:
    """The prepared graph of a quantized artifact, with its weights and ranges."""
    graph = prepared(run, plan_of(artifact), network_of(run, run.recipe.student, student))
    quantize.restore(graph, read_weights(artifact.file(WEIGHTS)))
    return graph


def program_of(run: Run, artifact: Artifact, student: Artifact) -> GraphModule:
    """The int8 program of a quantized artifact, giving logits only."""
    graph = restored(run, artifact, student)
    return quantize.convert(graph, example_inputs(run, 2), numerics=plan_of(artifact).numerics(run))


def losses_of(run: Run) -> list[LossSettings]:
    """The losses of quantization-aware training."""
    return run.recipe.quantize.losses or run.recipe.distill.losses


def taps_of(run: Run) -> tuple[str, ...]:
    """The modules of the student that those losses, and the method, look at."""
    member, _ = run._load("methods", run.recipe.distill.method)
    names = [tap for term in weighted_losses(run, losses_of(run)) for tap in term.loss.student_taps()]
    own = member.student_taps(member.Options(**run.recipe.distill.method_options))
    return tuple(dict.fromkeys((*names, *own)))
