"""Latency of edgekd's int8 file against its float file and against the int8 file of ONNX Runtime's own tool.

Three files are made from one float network and the same calibration inputs: float ONNX, edgekd's int8 for the
target onnxruntime_x86, and what `onnxruntime.quantization.quantize_static` (u8 activations, s8 weights per channel,
QDQ, min-max, after `quant_pre_process`) makes of the float file. They take turns on one pinned thread at batch 1. A
second session of edgekd's file takes part too: its ratio to the first is what this machine calls "equal".

Sessions are opened anew for every block of rounds, in another order, because where a session's memory lies and which
model ran just before it change its time by a few percent. `ratios` are of the time on the clock, which is what a user
waits; `ratios_cpu`, from half as many rounds more, are of the processor time of the one thread, which other processes
on the machine disturb less.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _networks import Network, calibrator, float_file, inputs, int8_file, target
from _record import add_common_options, machine, write
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgekd.devices.cpu import Cpu
from edgekd.export import INPUT, OUTPUT
from edgekd.measure import Protocol, compare, measure
from edgekd.quantize import sqnr_db
from edgekd.targets._base import Target
from edgekd.targets._onnxruntime import OnnxRuntimeRunner

NAME = "latency_vs_onnxruntime"

NETWORKS = {
    one.name: one
    for one in (
        Network("mobilenet_v2", "mobilenet_v2"),
        Network("resnet18", "resnet", {"depth": 18}),
        Network("resnet20", "resnet", {"depth": 20}, size=32, classes=10),
        Network("wrn_16_2", "wrn", {"depth": 16, "width": 2.0}, size=32, classes=10),
        Network("tiny", "tiny", size=16, classes=10),
    )
}
DEFAULT = ("mobilenet_v2", "resnet18", "resnet20", "wrn_16_2")
# float over int8 on AVX512-VNNI, one thread, batch 1; and edgekd over the peer, in time, anywhere
SPEEDUP_GOALS = {"mobilenet_v2": 2.2, "resnet18": 3.2}
PEER_GOAL = 1.0

FLOAT, OURS, TWIN, PEER = "float", "edgekd", "edgekd_again", "quantize_static"


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """The calibration inputs, as ONNX Runtime's tool wants them."""

    def __init__(self, batches: Sequence[torch.Tensor]) -> None:
        self._feeds = iter([{INPUT: batch.numpy()} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def peer_file(source: Path, path: Path, batches: Sequence[torch.Tensor], *, reduce_range: bool) -> Path:
    """What ONNX Runtime's own tool makes of a float file."""
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared),
        str(path),
        Batches(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()
    return path


def make_files(
    network: Network, folder: Path, *, seed: int, samples: int, reduce_range: bool
) -> tuple[dict[str, Path], Path]:
    """The files that are timed, by name, and the peer's file with the other weight range, for its error only."""
    module = network.build(seed)
    batches = list(torch.split(inputs(network, samples, seed=seed + 1), 4))
    x86 = target("onnxruntime_x86")
    plain = float_file(module, batches[0], folder / f"{network.name}_float.onnx", target=x86)
    ours = int8_file(
        module,
        batches,
        folder / f"{network.name}_edgekd.onnx",
        target=x86,
        reduce_range=reduce_range,
        calibrator=calibrator("minmax"),
    )
    # the tool's default: 8-bit weights; the kernels, and so the time, are the same with 7
    peer = peer_file(plain, folder / f"{network.name}_peer.onnx", batches, reduce_range=False)
    reduced = peer_file(plain, folder / f"{network.name}_peer_reduced.onnx", batches, reduce_range=True)
    return {FLOAT: plain, OURS: ours, PEER: peer}, reduced


def timed(
    files: Mapping[str, Path],
    feeds: Mapping[str, np.ndarray],
    *,
    pairs: int,
    blocks: int,
    max_seconds: float,
    warmup_seconds: float,
    clock_ns: Callable[[], int],
) -> tuple[dict[str, list[float]], list[dict[str, float]]]:
    """Samples in milliseconds by name, paired by position, and each block's own speedups."""
    samples: dict[str, list[float]] = {name: [] for name in (FLOAT, OURS, TWIN, PEER)}
    per_block = []
    protocol = Protocol(
        queries=math.ceil(pairs / blocks),
        max_seconds=max_seconds / blocks,
        warmup_min=10,
        warmup_max_seconds=warmup_seconds,
        window=5,
    )
    for order in _orders(blocks):
        with ExitStack() as stack:
            runners = {name: stack.enter_context(_runner(files, name)) for name in order}
            measured = measure(runners, feeds, protocol=protocol, clock_ns=clock_ns)
        for name, latency in measured.latencies.items():
            samples[name].extend(latency.samples_ms)
        speed = {name: measured.ratio(name, OURS).speedup for name in (FLOAT, TWIN, PEER)}
        per_block.append(speed)
    return samples, per_block


def _orders(blocks: int) -> Iterator[tuple[str, ...]]:
    """An order for each block; over six blocks every model runs as often after every other one.

    Rounds follow each other, so where an order begins does not matter: six cycles are all there are.
    """
    cycles = itertools.cycle(itertools.permutations((OURS, PEER, TWIN)))
    for order in itertools.islice(cycles, blocks):
        yield (FLOAT, *order)


def _runner(files: Mapping[str, Path], name: str) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(files[OURS if name == TWIN else name], threads=1)


def errors_db(files: Mapping[str, Path], feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """SQNR of every file's logits against the float file's, in dB."""
    logits = {}
    for name, path in files.items():
        with OnnxRuntimeRunner(path) as runner:
            logits[name] = torch.from_numpy(runner.run(feeds)[OUTPUT])
    return {name: sqnr_db(logits[FLOAT], values) for name, values in logits.items() if name != FLOAT}


def file_facts(x86: Target, path: Path, *, int8: bool) -> dict[str, Any]:
    """Size, operators of the file, and what the runtime makes of them."""
    audit = x86.audit(path)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    facts: dict[str, Any] = {
        "size_bytes": path.stat().st_size,
        "nodes_in_file": len(nodes),
        "q_and_dq_in_file": sum(name in ("QuantizeLinear", "DequantizeLinear") for name in nodes),
        "operators_that_run": dict(sorted(audit.operators.items())),
    }
    if int8:
        facts["fusion"] = {"quantizable": audit.quantizable, "int8": audit.int8, "coverage": audit.coverage}
    return facts


def row(network: Network, folder: Path, options: argparse.Namespace, *, has_vnni: bool) -> dict[str, Any]:
    """Everything about one network."""
    reduce_range = not has_vnni if options.reduce_range == "auto" else options.reduce_range == "on"
    files, reduced = make_files(
        network, folder, seed=options.seed, samples=options.calibration_samples, reduce_range=reduce_range
    )
    x86 = target("onnxruntime_x86")
    feeds = {INPUT: inputs(network, 1, seed=options.seed + 2).numpy()}
    with Cpu(Cpu.Options()).pinned(1) as cores:
        samples, per_block = timed(
            files,
            feeds,
            pairs=options.pairs,
            blocks=options.blocks,
            max_seconds=options.max_seconds,
            warmup_seconds=options.warmup_seconds,
            clock_ns=time.perf_counter_ns,
        )
        # one intra-op thread is the calling one, so its processor time is all of the model's
        cpu_samples, _ = timed(
            files,
            feeds,
            pairs=math.ceil(options.pairs / 2),
            blocks=math.ceil(options.blocks / 2),
            max_seconds=options.max_seconds,
            warmup_seconds=options.warmup_seconds,
            clock_ns=time.thread_time_ns,
        )
    held_out = {INPUT: inputs(network, options.error_samples, seed=options.seed + 3).numpy()}
    ratios = ratios_of(samples)
    return {
        **network.facts(),
        "n": len(samples[FLOAT]),
        "threads": 1,
        "batch": 1,
        "pinned_cores": cores,
        "median_ms": {name: float(np.median(values)) for name, values in samples.items()},
        "median_cpu_ms": {name: float(np.median(values)) for name, values in cpu_samples.items()},
        "ratios": ratios,
        "ratios_cpu": ratios_of(cpu_samples),
        "per_block": per_block,
        "goals": goals(network.name, ratios, has_vnni=has_vnni),
        "sqnr_db_against_float": errors_db({**files, "quantize_static_reduce_range": reduced}, held_out),
        "sqnr_samples": options.error_samples,
        "reduce_range": {OURS: reduce_range, PEER: False},
        "files": {name: file_facts(x86, path, int8=name != FLOAT) for name, path in files.items()},
    }


def ratios_of(samples: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Paired ratios of times, each with its interval and number of pairs."""
    return {
        "float_over_edgekd": compare(samples[FLOAT], samples[OURS]).model_dump(),
        "float_over_quantize_static": compare(samples[FLOAT], samples[PEER]).model_dump(),
        "edgekd_over_quantize_static": compare(samples[OURS], samples[PEER]).model_dump(),
        "edgekd_over_itself": compare(samples[OURS], samples[TWIN]).model_dump(),
    }


def goals(name: str, ratios: Mapping[str, Mapping[str, Any]], *, has_vnni: bool) -> dict[str, Any]:
    """What was aimed at and whether it was reached; the speedups are about processors with AVX512-VNNI only."""
    found: dict[str, Any] = {
        "edgekd_over_quantize_static": {
            "at_most": PEER_GOAL,
            "measured": ratios["edgekd_over_quantize_static"]["speedup"],
            "slower_beyond_noise": _low(ratios["edgekd_over_quantize_static"]) > PEER_GOAL,
        }
    }
    if name in SPEEDUP_GOALS:
        measured = ratios["float_over_edgekd"]["speedup"]
        found["float_over_edgekd"] = {
            "at_least": SPEEDUP_GOALS[name],
            "measured": measured,
            "applies_here": has_vnni,
            "met": measured >= SPEEDUP_GOALS[name] if has_vnni else None,
        }
    return found


def _low(ratio: Mapping[str, Any]) -> float:
    return float(ratio["ci95"][0]) if ratio["ci95"] else float(ratio["speedup"])


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, NAME)
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(DEFAULT))
    parser.add_argument("--pairs", type=int, default=400, help="timed rounds of each network")
    parser.add_argument("--blocks", type=int, default=12, help="times that sessions are opened anew; a multiple of 6")
    parser.add_argument("--max-seconds", type=float, default=150.0, help="of timing, for each network")
    parser.add_argument("--warmup-seconds", type=float, default=3.0, help="at most, in each block")
    parser.add_argument("--calibration-samples", type=int, default=32)
    parser.add_argument("--error-samples", type=int, default=32, help="inputs on which the error is measured")
    parser.add_argument(
        "--reduce-range", choices=["auto", "on", "off"], default="auto", help="7-bit weights; auto: without VNNI"
    )
    parser.add_argument("--keep", type=Path, help="folder that keeps the ONNX files")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    torch.set_num_threads(1)
    has_vnni = bool(machine()["has_vnni"])
    rows = {}
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.models:
            rows[name] = row(NETWORKS[name], folder, options, has_vnni=has_vnni)
            _tell(name, rows[name])
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results={"has_vnni": has_vnni, "rows": rows})


def _tell(name: str, result: Mapping[str, Any]) -> None:
    print(f"{name}: n {result['n']}, SQNR dB {_short(result['sqnr_db_against_float'])}")
    for key, ratio in result["ratios"].items():
        print(f"  {key}: {_ratio(ratio)}, of processor time {_ratio(result['ratios_cpu'][key])}")


def _ratio(ratio: Mapping[str, Any]) -> str:
    interval = ratio["ci95"] and [round(bound, 3) for bound in ratio["ci95"]]
    return f"{ratio['speedup']:.3f} {interval or ''}"


def _short(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:.1f}" for key, value in values.items())


if __name__ == "__main__":
    main(sys.argv[1:])
