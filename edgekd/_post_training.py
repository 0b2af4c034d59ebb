"""Post-training quantization from the float student to a calibrated graph, and what each correction brought."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import _group
from edgekd._preparing import apply, corrected_network, folded, sqnr_db, with_quantizers
from edgekd._quiet import quiet
from edgekd._recalled import Memory, graph_hash, observed, recalled
from edgekd.calibration._base import Calibrator
from edgekd.calibration._fake_quantize import ActivationQuantizer, quantizers, set_phase
from edgekd.corrections._base import Context, Correction, Stage
from edgekd.errors import DataError
from edgekd.taps import logits_of
from edgekd.targets._annotate import TargetQuantizer
from edgekd.targets._base import Numerics

__all__ = ["Corrected", "PostTraining", "calibrate", "post_training"]

_STAGES: tuple[Stage, ...] = ("network", "folded", "calibrated")
_MEASURED_SAMPLES = 256  # of the calibration data, for the decibels of the report


@dataclass(frozen=True)
class Corrected:
    """What one correction did.

    Args:
        name: the member's.
        stage: where it worked.
        before_db: SQNR of the int8 graph's logits against the float network's before it, in dB.
        after_db: the same after it; for the stage `network` against the network that it left.
        float_db: SQNR of the float logits after it against those before it; inf at the stage `calibrated`, which leaves
            the float network alone.
    """

    name: str
    stage: str
    before_db: float
    after_db: float
    float_db: float


@dataclass(frozen=True)
class PostTraining:
    """A calibrated graph, the samples it was calibrated on, and a line for each correction in the order of the work."""

    graph: GraphModule
    samples: int
    corrections: tuple[Corrected, ...]


def post_training(
    student: nn.Module,
    example: Tensor,
    batches: Callable[[], Iterable[Tensor]],
    *,
    numerics: Numerics,
    calibrator: Calibrator,
    reduce_range: bool,
    taps: Sequence[str] = (),
    float_layers: Sequence[str] = (),
    corrections: Sequence[Correction] = (),
    seed: int = 0,
    memory: Memory | None = None,
) -> PostTraining:
    """Prepare, correct and calibrate: the whole of post-training quantization.

    Corrections run by stage (network, folded, calibrated), within a stage in the order given. Each is measured
    on its own: the graph is calibrated anew before and after it.

    Args:
        student: a trained float module; it is not changed.
        example: normalised inputs, shape (B, C, H, W).
        batches: gives the calibration data anew at every call: normalised inputs of that shape.
        numerics: the target's.
        calibrator: chooses the ranges of activations.
        reduce_range: neighbouring weights share their 8 bits; see `edgekd.calibration._pair_sums`.
        taps: names of the student's modules whose outputs the graph returns behind the logits.
        float_layers: names or patterns of layers that stay float.
        corrections: members of the catalog `corrections`.
        seed: of everything random in them.
        memory: what calibration saw of the same graph on the same samples is not looked at again.

    Raises:
        NotFaithful: the graph differs from the network.
        DataError: no data, or a NaN or infinite value on the way.
        UsageError: a name in `float_layers` that no layer has.
    """
    quantizer = TargetQuantizer(numerics, calibrator=calibrator, reduce_range=reduce_range, float_layers=float_layers)
    run = _Run(example, Context(batches, numerics, reduce_range, seed), taps, quantizer, memory)
    run.start(copy.deepcopy(student).eval())
    ordered = sorted(corrections, key=lambda one: _STAGES.index(one.stage))
    lines = [run.correct(one) for one in ordered]
    return PostTraining(run.graph, run.samples, tuple(lines))


def calibrate(
    graph: GraphModule,
    batches: Iterable[Tensor],
    *,
    corrections: Sequence[Correction] = (),
    context: Context | None = None,
    memory: Memory | None = None,
) -> int:
    """Observe batches and set every activation's range from them; what was observed before is forgotten.

    Args:
        graph: from `prepare`.
        batches: normalised inputs, shape (B, C, H, W).
        corrections: those of the stage `calibrated` are applied, in this order; `prepare` takes the others.
        context: what they look at.
        memory: what was seen of the same graph on the same samples; `batches` are left alone then.

    Returns:
        The number of samples seen.

    Raises:
        DataError: no batch, or a NaN or infinite value on the way.
        UsageError: corrections without a context.
    """
    activations = [one for _, one in quantizers(graph) if isinstance(one, ActivationQuantizer)]
    for quantizer in activations:
        quantizer.forget()
    samples = recalled(graph, memory) or _observe(graph, batches, memory)
    for quantizer in activations:
        quantizer.calibrate()
    set_phase(graph, "frozen")
    late = [one for one in corrections if one.stage == "calibrated"]
    if late and context is not None:
        context = dataclasses.replace(context, reference=_reference(graph))
    apply(graph, late, "calibrated", context)
    return samples


def _observe(graph: GraphModule, batches: Iterable[Tensor], memory: Memory | None) -> int:
    """Run a graph over batches and let its quantizers see; gives the number of samples.

    Of several processes each looks at every so-many-th batch; then all know what all have seen.
    """
    set_phase(graph, "observe")
    samples = 0
    with torch.no_grad():
        for inputs in itertools.islice(batches, _group.index(), None, _group.count()):
            graph(inputs)
            samples += len(inputs)
    samples = sum(_group.gather(samples))
    if samples == 0:
        raise DataError("Calibration saw no data. Give quantize.calibration_samples at least one sample.")
    _merge(graph)
    if memory is not None and _group.is_main():
        memory.keep(graph_hash(graph), observed(graph))
    return samples


def _merge(graph: GraphModule) -> None:
    """Put together what the quantizers saw in several processes; counts add up exactly, in any order."""
    if _group.count() == 1:
        return
    parts = _group.gather(observed(graph))
    for name, one in quantizers(graph):
        if isinstance(one, ActivationQuantizer):
            one.forget()
            for part in parts:
                one.histogram.merge(part[name])


class _Run:
    """The network and its graphs from one correction to the next."""

    graph: GraphModule
    samples: int

    def __init__(
        self,
        example: Tensor,
        context: Context,
        taps: Sequence[str],
        quantizer: TargetQuantizer,
        memory: Memory | None,
    ) -> None:
        self.example, self.context, self.taps = example, context, taps
        self.quantizer, self.memory = quantizer, memory
        self._exported: GraphModule | None = None
        self._quality: float | None = None

    def start(self, network: nn.Module) -> None:
        """Take a float network as it is."""
        self.network = network
        self._take(folded(network, self.example, self.taps))

    def correct(self, correction: Correction) -> Corrected:
        """Apply one correction, and measure before and after."""
        before, was = self.quality(), self._float_logits()
        if correction.stage == "network":
            self.start(corrected_network(self.network, [correction], self.context))
        elif correction.stage == "folded":
            exported = self._exported or folded(self.network, self.example, self.taps)
            correction.apply(exported, self.context)
            with quiet():
                self._exported = copy.deepcopy(exported)
            self._take(exported, keep=self._exported)
        else:
            if self.context.reference is None:
                self.context = dataclasses.replace(self.context, reference=_reference(self.graph))
            correction.apply(self.graph, self.context)
            self._quality = None
        moved = math.inf if correction.stage == "calibrated" else sqnr_db(was, self._float_logits())
        return Corrected(correction.name, correction.stage, before, self.quality(), moved)

    def quality(self) -> float:
        """SQNR of the int8 logits against the float network's on the first samples of the calibration data, in dB."""
        if self._quality is None:
            wanted, found, left = [], [], _MEASURED_SAMPLES
            with torch.no_grad():
                for batch in self.context.batches():
                    wanted.append(logits_of(self.network(batch[:left])))
                    found.append(logits_of(self.graph(batch[:left])))
                    left -= len(batch)
                    if left <= 0:
                        break
            self._quality = sqnr_db(torch.cat(wanted), torch.cat(found))
        return self._quality

    def _take(self, exported: GraphModule, keep: GraphModule | None = None) -> None:
        """Put quantizers into a folded graph, which is used up, and calibrate it."""
        self._exported = keep
        self.graph = with_quantizers(exported, self.network, self.example, quantizer=self.quantizer, taps=self.taps)
        self.samples = calibrate(self.graph, self.context.batches(), memory=self.memory)
        self._quality = None

    def _float_logits(self) -> Tensor:
        with torch.no_grad():
            source = self._exported if self._exported is not None else self.network
            return logits_of(source(self.example))


def _reference(graph: GraphModule) -> GraphModule:
    """A copy of a graph with its quantizers off."""
    with quiet():
        copied = copy.deepcopy(graph)
    set_phase(copied, "off")
    return copied
