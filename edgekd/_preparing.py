"""From a float student to a graph with quantizers, which computes the same as long as they are off."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from edgekd._folding import fold_batch_norm
from edgekd._normal_form import normalise
from edgekd._quiet import quiet
from edgekd.calibration._base import Calibrator
from edgekd.calibration._fake_quantize import set_phase
from edgekd.corrections._base import Context, Correction, Stage
from edgekd.errors import EdgeKDError, MismatchError, UsageError
from edgekd.taps import Tapped
from edgekd.targets._annotate import TargetQuantizer
from edgekd.targets._base import Numerics

__all__ = [
    "MIN_FAITHFUL_DB",
    "NotFaithful",
    "apply",
    "capture",
    "corrected_network",
    "faithful_db",
    "folded",
    "prepare",
    "sqnr_db",
    "with_quantizers",
]

MIN_FAITHFUL_DB = 60.0
"""A prepared graph with its quantizers off must equal the float student at least this well."""


class NotFaithful(EdgeKDError):
    """The prepared graph does not compute what the float student computes."""


def prepare(
    student: nn.Module,
    example: Tensor,
    *,
    numerics: Numerics,
    calibrator: Calibrator,
    reduce_range: bool,
    taps: Sequence[str] = (),
    float_layers: Sequence[str] = (),
    corrections: Sequence[Correction] = (),
    context: Context | None = None,
) -> GraphModule:
    """Export a student and put a target's quantizers into its graph; all of them are off.

    Args:
        student: a trained float module; it is not changed.
        example: normalised inputs, shape (B, C, H, W).
        numerics: the target's.
        calibrator: chooses activation ranges in `calibrate`.
        reduce_range: neighbouring weights share their 8 bits; see `edgekd.calibration._pair_sums`.
        taps: names of the student's modules whose outputs the graph returns behind the logits.
        float_layers: names or patterns of layers that stay float, `blocks.0` or `*.conv2`; "*" is all of them.
        corrections: those of the stages `network` and `folded` are applied, each in this order; `calibrate` takes
            the others.
        context: what they look at.

    Returns:
        A graph from (B, C, H, W), any B, to (logits, *taps). It has no train() and eval(): dropout is off and
        batch normalisation is folded, so neither mode has a meaning.

    Raises:
        NotFaithful: the graph differs from the student; says by how much.
        UsageError: a name in `float_layers` that no layer has, or corrections without a context.
    """
    network = corrected_network(student, corrections, context)
    exported = folded(network, example, taps)
    apply(exported, corrections, "folded", context)
    return with_quantizers(
        exported,
        network,
        example,
        quantizer=TargetQuantizer(
            numerics, calibrator=calibrator, reduce_range=reduce_range, float_layers=float_layers
        ),
        taps=taps,
    )


def corrected_network(student: nn.Module, corrections: Sequence[Correction], context: Context | None) -> nn.Module:
    """The student in eval mode behind the corrections of the stage `network`: a copy where there are any."""
    if not any(one.stage == "network" for one in corrections):
        return student
    network = copy.deepcopy(student).eval()
    apply(network, corrections, "network", context)
    return network


def folded(network: nn.Module, example: Tensor, taps: Sequence[str] = ()) -> GraphModule:
    """A network's exported graph in normal form, its batch normalisation folded, without quantizers."""
    exported = capture(network, example, taps)
    normalise(exported)
    fold_batch_norm(exported)
    return exported


def apply(model: nn.Module, corrections: Sequence[Correction], stage: Stage, context: Context | None) -> None:
    """Apply the corrections of one stage to a model, in place and in their order.

    Raises:
        UsageError: there are some, and no context.
    """
    for one in corrections:
        if one.stage == stage:
            if context is None:
                raise UsageError(f"Correction '{one.name}' needs a context: calibration data and the target's grids.")
            one.apply(model, context)


def with_quantizers(
    exported: GraphModule, network: nn.Module, example: Tensor, *, quantizer: TargetQuantizer, taps: Sequence[str]
) -> GraphModule:
    """Put quantizers into a folded graph, which is used up, and check it against the network.

    Raises:
        NotFaithful: the graph differs from the network; says by how much.
    """
    with quiet():
        graph: GraphModule = prepare_pt2e(exported, quantizer)
    for parameter in graph.parameters():
        parameter.requires_grad_(True)
    quality = faithful_db(graph, network, example, taps=taps)
    if quality < MIN_FAITHFUL_DB:
        raise NotFaithful(
            f"The prepared graph differs from the float student: {quality:.1f} dB, at least {MIN_FAITHFUL_DB:.0f} dB"
            " is needed. Look for layers whose result depends on train or eval mode, or report this model."
        )
    return graph


def capture(student: nn.Module, example: Tensor, taps: Sequence[str] = ()) -> GraphModule:
    """Export a student in eval mode with a dynamic batch, taps behind the logits.

    Raises:
        MismatchError: torch.export cannot capture the model; says where.
    """
    wrapped = Tapped(copy.deepcopy(student).eval(), taps)
    # a batch of one would be baked in as a constant
    example = example[:1].expand(2, *example.shape[1:]).contiguous() if len(example) < 2 else example
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with quiet():
            exported = torch.export.export(wrapped, (example,), dynamic_shapes=({0: batch},))
            return exported.module()
    except EdgeKDError:
        raise
    except Exception as error:
        raise MismatchError(
            f"torch.export cannot capture {type(student).__name__}: {_first_line(error)}"
            " Models with control flow that depends on values must be rewritten without it."
        ) from error


def faithful_db(graph: GraphModule, student: nn.Module, example: Tensor, *, taps: Sequence[str] = ()) -> float:
    """SQNR in dB of the prepared graph with all quantizers off against the float student in eval mode.

    Of the logits and the taps, the worst.
    """
    set_phase(graph, "off")
    wrapped = Tapped(copy.deepcopy(student).eval(), taps)
    with torch.no_grad():
        pairs = zip(wrapped(example), graph(example), strict=True)
        return min(sqnr_db(wanted, found) for wanted, found in pairs)


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """10 log10 of signal power over error power; inf when they are equal, -inf when one is no number.

    >>> round(sqnr_db(torch.tensor([10.0]), torch.tensor([9.0])), 6)
    20.0
    """
    error = float(((reference - other).double() ** 2).sum())
    power = float((reference.double() ** 2).sum())
    if error == 0.0:
        return math.inf
    return 10.0 * math.log10(power / error) if power > 0 and math.isfinite(error) else -math.inf


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
