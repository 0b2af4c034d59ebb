"""edgekd's quantization-aware flow against torchao's own: seconds, and faithfulness to the float network.

edgekd exports a network in eval mode, where batch normalisation folds into the convolutions with its own eps, and
prepares that graph. torchao's `prepare_qat_pt2e` keeps batch normalisation in the graph by rewriting each convolution
with one of eps 1e-5. For networks made with another eps (MobileNetV3, EfficientNet, most detectors: 1e-3) and small
running variances the two differ. Both are measured here on the same networks, with quantizers off (must equal the
float network) and after calibration and conversion.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _networks import Network, calibrator, inputs, target
from _record import add_common_options, write
from torch import Tensor, nn
from torch.ao.quantization.fake_quantize import FakeQuantizeBase as TorchFakeQuantize
from torch.fx import GraphModule
from torchao.quantization.pt2e import FakeQuantizeBase, move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from edgekd import quantize

NAME = "quantization_flow"

NETWORKS = {
    one.name: one
    for one in (
        Network("tiny", "tiny", size=16, classes=10),
        Network("resnet20", "resnet", {"depth": 20}, size=32, classes=10),
        Network("mobilenet_v2", "mobilenet_v2", size=96),
    )
}
DEFAULT = ("resnet20", "mobilenet_v2")
EPSILONS = (1e-3, 1e-5)
"""Of batch normalisation: what the networks in question have, and as a control the one that torchao writes."""

_VARIANCE = 1e-3
_REDUCE_RANGE = False


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, and of the processor, which other processes on the machine lengthen less."""

    wall: float
    cpu: float

    @classmethod
    def since(cls, start: Took) -> Took:
        """From `start` until now."""
        return cls(time.perf_counter() - start.wall, time.process_time() - start.cpu)

    @classmethod
    def now(cls) -> Took:
        """The two clocks."""
        return cls(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class Prepared:
    """A prepared graph.

    Args:
        graph: from inputs to logits.
        off: SQNR in dB of the graph with quantizers off against the float network.
        took: from the float module to the graph, export included.
    """

    graph: GraphModule
    off: float
    took: Took


def with_small_variances(module: nn.Module, eps: float) -> nn.Module:
    """The same network up to eps, its running variances scaled to about `_VARIANCE`; in eval mode.

    A convolution scaled by k has its running mean scaled by k and its variance by k squared: only eps tells.
    """
    scaled = copy.deepcopy(module)
    layers = [one for one in scaled.modules() if isinstance(one, (nn.Conv2d, nn.BatchNorm2d))]
    for convolution, norm in zip(layers[::2], layers[1::2], strict=True):
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise TypeError("expected a batch normalisation behind every convolution")
        if norm.running_mean is None or norm.running_var is None:
            raise TypeError("expected running statistics")
        factor = (_VARIANCE / norm.running_var).sqrt()
        with torch.no_grad():
            convolution.weight.mul_(factor.view(-1, 1, 1, 1))
            norm.running_mean.mul_(factor)
            norm.running_var.mul_(factor.square())
        norm.eps = eps
    return scaled.eval()


def edgekd_prepared(module: nn.Module, example: Tensor) -> Prepared:
    """By edgekd, the target onnxruntime_x86; its own faithfulness check included in the seconds."""
    start = Took.now()
    graph = quantize.prepare(
        module,
        example,
        numerics=target("onnxruntime_x86").numerics,
        calibrator=calibrator("minmax"),
        reduce_range=_REDUCE_RANGE,
    )
    took = Took.since(start)
    return Prepared(graph, quantize.faithful_db(graph, module, example), took)


def edgekd_converted(graph: GraphModule, batches: Sequence[Tensor]) -> GraphModule:
    """The int8 program by edgekd."""
    quantize.calibrate(graph, batches)
    return quantize.convert(graph, batches[0], numerics=target("onnxruntime_x86").numerics)


def torchao_prepared(module: nn.Module, example: Tensor) -> Prepared:
    """By torchao, as its tutorial for quantization-aware training says: export in train mode, then prepare."""
    start = Took.now()
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    exported = torch.export.export(copy.deepcopy(module).train(), (example,), dynamic_shapes=({0: batch},)).module()
    quantizer = X86InductorQuantizer().set_global(
        get_default_x86_inductor_quantization_config(is_qat=True, reduce_range=_REDUCE_RANGE)
    )
    graph: GraphModule = prepare_qat_pt2e(exported, quantizer)
    took = Took.since(start)
    move_exported_model_to_eval(graph)
    _switch(graph, observe=False, fake=False)
    with torch.no_grad():
        off = quantize.sqnr_db(module(example), graph(example))
    return Prepared(graph, off, took)


def torchao_converted(graph: GraphModule, batches: Sequence[Tensor]) -> GraphModule:
    """The int8 program by torchao, calibrated in eval mode so that batch statistics stay."""
    _switch(graph, observe=True, fake=False)
    with torch.no_grad():
        for batch in batches:
            graph(batch)
    program: GraphModule = convert_pt2e(graph)
    move_exported_model_to_eval(program)
    return program


def _switch(graph: GraphModule, *, observe: bool, fake: bool) -> None:
    found = [one for one in graph.modules() if isinstance(one, (FakeQuantizeBase, TorchFakeQuantize))]
    if not found:
        raise RuntimeError("the prepared graph has no quantizers to switch")
    for one in found:
        one.enable_observer(observe)
        one.enable_fake_quant(fake)


def measured(
    module: nn.Module,
    batches: Sequence[Tensor],
    *,
    prepare: Callable[[nn.Module, Tensor], Prepared],
    convert: Callable[[GraphModule, Sequence[Tensor]], GraphModule],
) -> dict[str, float]:
    """One flow on one network: seconds of both halves and the two errors in dB."""
    prepared = prepare(module, batches[0])
    start = Took.now()
    program = convert(prepared.graph, batches)
    took = Took.since(start)
    with torch.no_grad():
        int8_db = quantize.sqnr_db(module(batches[0]), program(batches[0]))
    return {
        "prepare_seconds": prepared.took.wall,
        "prepare_cpu_seconds": prepared.took.cpu,
        "calibrate_and_convert_seconds": took.wall,
        "calibrate_and_convert_cpu_seconds": took.cpu,
        "quantizers_off_db": prepared.off,
        "int8_db": int8_db,
    }


FLOWS = {"edgekd": (edgekd_prepared, edgekd_converted), "torchao": (torchao_prepared, torchao_converted)}


def rows_of(network: Network, epsilons: Sequence[float], options: argparse.Namespace) -> dict[str, Any]:
    """The flows on one network, for every eps."""
    batches = list(torch.split(inputs(network, options.samples, seed=options.seed + 1), 4))
    found: dict[str, Any] = {**network.facts(), "running_variance": _VARIANCE, "eps": {}}
    for eps in epsilons:
        module = with_small_variances(network.build(options.seed), eps)
        found["eps"][f"{eps:g}"] = {
            flow: measured(module, batches, prepare=FLOWS[flow][0], convert=FLOWS[flow][1]) for flow in options.flows
        }
    return found


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, NAME)
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(DEFAULT))
    parser.add_argument("--samples", type=int, default=8, help="calibration inputs")
    parser.add_argument("--flows", nargs="+", choices=list(FLOWS), default=list(FLOWS))
    parser.add_argument("--eps", nargs="+", type=float, default=list(EPSILONS), help="of batch normalisation")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows_of(NETWORKS["tiny"], EPSILONS[:1], options)  # the first export of a process loads what later ones find there
    rows = {}
    for name in options.models:
        rows[name] = rows_of(NETWORKS[name], options.eps, options)
        _tell(name, rows[name])
    results = {
        "n": 1,
        "threads": 1,
        "note": "Seconds are of one run each on a shared machine; their ratio is what counts. dB are exact.",
        "rows": rows,
    }
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results=results)


def _tell(name: str, result: dict[str, Any]) -> None:
    for eps, flows in result["eps"].items():
        for flow, one in flows.items():
            print(
                f"{name} eps {eps} {flow}: prepare {one['prepare_cpu_seconds']:.1f} s, convert"
                f" {one['calibrate_and_convert_cpu_seconds']:.1f} s of CPU, off {one['quantizers_off_db']:.1f} dB, int8"
                f" {one['int8_db']:.1f} dB"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
