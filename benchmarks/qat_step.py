"""A step of quantization-aware training against a step of the float student: seconds of one thread, and preparation.

A step is forward, cross-entropy, backward and SGD, on one batch, in the memory layout that the engine picks. `float`
is the student as it is trained, with batch normalisation in training mode; `folded` is its prepared graph with the
quantizers off, so the same graph as in the phases `track`, `learn` and `frozen`, where it simulates int8. `guard` is
`track` with the oscillation guard at work. The steps are interleaved, float, folded, track, ..., float, ...; ratios
are over neighbouring steps. Beside them the seconds from the float student to the prepared graph, export included.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _networks import Network, calibrator, inputs, target
from _record import add_common_options, write
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd._compute import faster_layout
from edgekd._schedule import make_optimizer
from edgekd._statistics import compare
from edgekd.calibration._fake_quantize import Phase
from edgekd.recipe import TrainSettings
from edgekd.taps import logits_of

NAME = "qat_step"
GOAL = 1.3
"""A step of quantization-aware training over a float one, at most."""
PREPARE_GOAL_SECONDS = 20.0
"""From the float MobileNetV2 at 224 to its prepared graph, at most."""

NETWORKS = {
    one.name: one
    for one in (
        Network("tiny", "tiny", size=16, classes=10, channels=1),
        Network("resnet8", "resnet", {"depth": 8}, size=28, classes=10, channels=1),
        Network("mobilenet_v2", "mobilenet_v2", size=28, classes=10, channels=1),
    )
}
DEFAULT = ("resnet8", "mobilenet_v2")
PREPARED = {
    one.name: one
    for one in (Network("tiny", "tiny", size=16, classes=10, channels=1), Network("mobilenet_v2_224", "mobilenet_v2"))
}
SETTINGS = TrainSettings(lr=1e-4, weight_decay=0.0)

Step = Callable[[Tensor, Tensor], None]


def prepared(module: nn.Module, example: Tensor) -> GraphModule:
    """The network's graph for ONNX Runtime on x86, quantizers off."""
    return quantize.prepare(
        module,
        example,
        numerics=target("onnxruntime_x86").numerics,
        calibrator=calibrator("minmax"),
        reduce_range=True,  # costs a little in every step, and is what a processor without VNNI trains
    )


def steps_of(module: nn.Module, batch: Tensor, *, compiled: bool) -> dict[str, Step]:
    """What takes part, by name; each trains a copy of its own."""
    graph = prepared(module, batch[:8])
    quantize.calibrate(graph, [batch])
    steps = {"float": _step(copy.deepcopy(module).train(), batch, compiled=compiled)}
    for name in ("folded", "track", "learn", "frozen"):
        steps[name] = _step(_in_phase(graph, name), batch, compiled=compiled)
    guarded = _in_phase(graph, "track")
    options = quantize.OscillationOptions(dampening=1e-3, freeze_above=0.02)
    steps["guard"] = _step(guarded, batch, compiled=compiled, guard=quantize.OscillationGuard(guarded, options))
    return steps


def _in_phase(graph: GraphModule, name: str) -> GraphModule:
    own = copy.deepcopy(graph)
    if name == "learn":
        quantize.learn_ranges(own)
    phases: dict[str, Phase] = {"folded": "off", "track": "track", "learn": "learn", "frozen": "frozen"}
    quantize.set_phase(own, phases[name])
    return own


def _step(network: nn.Module, batch: Tensor, *, compiled: bool, guard: quantize.OscillationGuard | None = None) -> Step:
    network.to(memory_format=faster_layout([network], batch))  # type: ignore[call-overload]
    optimizer = make_optimizer([network], settings=SETTINGS)
    run = torch.compile(network) if compiled else network

    def step(values: Tensor, labels: Tensor) -> None:
        if guard:
            guard.step(0.5)
        loss = F.cross_entropy(logits_of(run(values)), labels)
        for term in guard.terms().values() if guard else ():
            loss = loss + term.weight * term.value
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def timed(
    steps: Mapping[str, Step], batch: Tensor, labels: Tensor, *, rounds: int, warmup: int
) -> dict[str, list[float]]:
    """Milliseconds of processor time of every step, by name, in rounds of one each."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for count in range(warmup + rounds):
        # what ran just before a step decides what lies in the cache: every one takes every place
        for name in names[count % len(names) :] + names[: count % len(names)]:
            start = time.process_time()
            steps[name](batch, labels)
            if count >= warmup:
                found[name].append((time.process_time() - start) * 1e3)
    return found


def row(network: Network, options: argparse.Namespace) -> dict[str, Any]:
    """One network's steps and their ratios to the float one."""
    batch = inputs(network, options.batch, seed=options.seed + 1)
    batch = batch.contiguous(memory_format=faster_layout([network.build(options.seed)], batch))
    labels = torch.arange(options.batch) % network.classes
    steps = steps_of(network.build(options.seed), batch, compiled=options.compiled)
    samples = timed(steps, batch, labels, rounds=options.rounds, warmup=options.warmup)
    ratios = {}
    for base in ("float", "folded"):
        for name in steps:
            if name not in ("float", "folded"):
                ratio = compare(samples[name], samples[base], seed=options.seed)
                ratios[f"{name}_over_{base}"] = {"ratio": ratio.speedup, "ci95": ratio.ci95, "n": ratio.n}
    return {
        **network.facts(),
        "batch": options.batch,
        "n": options.rounds,
        "layout": "channels_last" if batch.is_contiguous(memory_format=torch.channels_last) else "contiguous",
        "median_ms": {name: statistics.median(values) for name, values in samples.items()},
        "ratios": ratios,
        "goals": {name: goal(ratios[f"{name}_over_float"]) for name in ("track", "learn", "frozen")},
    }


def goal(ratio: Mapping[str, Any]) -> dict[str, Any]:
    """What was aimed at, and whether the measured ratio reaches it."""
    return {"at_most": GOAL, "measured": ratio["ratio"], "met": ratio["ratio"] <= GOAL}


def preparation(network: Network, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the float student to its prepared graph, the check of its faithfulness included."""
    module, example = network.build(options.seed), inputs(network, 8, seed=options.seed)
    wall, processor = time.perf_counter(), time.process_time()
    prepared(module, example)
    seconds = time.perf_counter() - wall
    return {
        **network.facts(),
        "n": 1,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - processor,
        "at_most": PREPARE_GOAL_SECONDS,
        "met": seconds <= PREPARE_GOAL_SECONDS,
    }


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, NAME)
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(DEFAULT))
    parser.add_argument("--prepare", nargs="*", choices=list(PREPARED), default=["mobilenet_v2_224"])
    parser.add_argument("--batch", type=int, default=128, help="samples of a step")
    parser.add_argument("--rounds", type=int, default=30, help="steps of each that count")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each that do not")
    parser.add_argument("--compiled", action="store_true", help="run every step, the float one too, by torch.compile")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    preparation(PREPARED["tiny"], options)  # the first export of a process loads what later ones find there
    prepares = {name: preparation(PREPARED[name], options) for name in options.prepare}
    for name, one in prepares.items():
        print(f"{name}: prepared in {one['seconds']:.1f} s, {one['cpu_seconds']:.1f} s of processor time")
    rows = {}
    for name in options.models:
        rows[name] = row(NETWORKS[name], options)
        _tell(name, rows[name])
    results = {
        "threads": 1,
        "compiled": options.compiled,
        "note": "Milliseconds are of processor time of one thread on a shared machine; their ratios are what counts.",
        "rows": rows,
        "prepare": prepares,
    }
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results=results)


def _tell(name: str, result: Mapping[str, Any]) -> None:
    print(name, {step: round(value, 1) for step, value in result["median_ms"].items()})
    for key, ratio in result["ratios"].items():
        print(f"  {key}: {ratio['ratio']:.3f} {ratio['ci95'] and [round(bound, 3) for bound in ratio['ci95']]}")


if __name__ == "__main__":
    main(sys.argv[1:])
