"""edgekd's calibration against ONNX Runtime's: seconds per image, peak memory, and what int8 then keeps of the logits.

Both tools take the same images in the same batches on one pinned core; edgekd runs the prepared torch graph,
ONNX Runtime its own session on the float ONNX file of the same network. Seconds are of finding all ranges, running the
network included. Rounds take turns, A B A B, and a ratio is of neighbouring rounds.

The quality of a calibrator is the SQNR of the int8 file's logits against the float file's on crops of photographs
that calibrated nothing. It is taken twice: with 8-bit weights and the runtime's optimizations off, which gives the
numbers of a processor with VNNI, and as each tool advises for one without: 7-bit weights of ONNX Runtime, weights that
share 8 bits of edgekd.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from _calibrating import MODELS, PEER_METHODS, Model, Reader, activations, batches, peer_calibrated, prepared
from _networks import calibrator, float_file, target
from _record import add_common_options, write
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.catalog import CATALOGS
from edgekd.devices.cpu import Cpu
from edgekd.export import INPUT, onnx_from_torch, save_onnx

NAME = "calibration"

_OPSET = 20
_WEIGHT_BITS = {"8_bit_weights": False, "without_vnni": True}
SPEED_GOAL, MEMORY_GOAL = 3.0, 1.2


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor, which other processes on the machine lengthen less."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def speed(model: Model, source: Path, graph: GraphModule, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per image of both entropy calibrators in turn, and where edgekd's go."""
    images = list(batches(model, options.timed_images, seed=options.seed + 1))
    count = sum(map(len, images))
    tools: dict[str, Callable[[], Any]] = {
        "edgekd": lambda: quantize.calibrate(graph, images),
        "onnxruntime": lambda: peer_calibrated(source, images, "entropy"),
        "edgekd_network_alone": lambda: network_alone(graph, images),
        "edgekd_ranges_alone": lambda: ranges_alone(graph),
    }
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in tools}
    with Cpu(Cpu.Options()).pinned(1):
        for work in tools.values():
            work()
        for _ in range(options.rounds):
            for name, work in tools.items():
                samples[name].append(timed(work))
    found: dict[str, Any] = {"images": count, "rounds": options.rounds}
    for clock, index in (("wall", 0), ("cpu", 1)):
        per_image = {name: [one[index] / count for one in all_] for name, all_ in samples.items()}
        ratios = [theirs / ours for ours, theirs in zip(per_image["edgekd"], per_image["onnxruntime"], strict=True)]
        found[f"{clock}_seconds_per_image"] = {name: median(values) for name, values in per_image.items()}
        found[f"{clock}_times_faster"] = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
    values = sum(one.histogram.total for one in activations(graph)) / count
    counting = median(one[1] for one in samples["edgekd"]) - median(one[1] for one in samples["edgekd_network_alone"])
    found["values_per_image"] = values
    found["nanoseconds_per_value"] = counting / count / values * 1e9
    found["milliseconds_per_range"] = (
        median(one[1] for one in samples["edgekd_ranges_alone"]) / len(activations(graph)) * 1e3
    )
    return found


def network_alone(graph: GraphModule, images: Sequence[Tensor]) -> None:
    """The graph without observing."""
    quantize.set_phase(graph, "off")
    with torch.no_grad():
        for batch in images:
            graph(batch)


def ranges_alone(graph: GraphModule) -> None:
    """The choice of every range, from histograms that are there."""
    for one in activations(graph):
        one.calibrate()


def memory(model: Model, source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a process of its own for each tool and number of images."""
    script = Path(__file__).with_name("_calibration_memory.py")
    found: dict[str, Any] = {}
    for tool, counts in (("edgekd", options.memory_images), ("onnxruntime", options.peer_memory_images)):
        found[tool] = {}
        for count in counts:
            command = [sys.executable, str(script), tool, model.name, str(count), str(source)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[tool][str(count)] = json.loads(output.splitlines()[-1])
        peaks = [one["peak_mib"] for one in found[tool].values()]
        found[f"{tool}_most_over_fewest"] = peaks[-1] / peaks[0]
    return found


def our_files(model: Model, folder: Path, given: Sequence[Tensor], *, seed: int, reduce_range: bool) -> dict[str, Path]:
    """An int8 file by each calibrator of edgekd, all from the histograms of one pass."""
    x86 = target("onnxruntime_x86")
    graph = prepared(model.build(seed), given[0], name="minmax", reduce_range=reduce_range)
    quantize.calibrate(graph, given)
    files = {}
    for name in CATALOGS["calibration"].names():
        for one in activations(graph):
            one.calibrator = calibrator(name)
            one.calibrate()
        program = quantize.convert(graph, given[0], numerics=x86.numerics)
        path = folder / f"edgekd_{name}_{reduce_range}.onnx"
        files[f"edgekd_{name}"] = save_onnx(
            onnx_from_torch(program, given[0], target=x86, opset=_OPSET, int8=True, metadata={}), path
        )
    return files


def peer_files(source: Path, folder: Path, given: Sequence[Tensor], *, reduce_range: bool) -> dict[str, Path]:
    """An int8 file by each method of `quantize_static`, with its own defaults."""
    files = {}
    for name, method in PEER_METHODS.items():
        path = folder / f"onnxruntime_{name}_{reduce_range}.onnx"
        with redirect_stdout(StringIO()):  # it prints what it does
            quantize_static(
                str(source),
                str(path),
                Reader(given),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=method,
            )
        files[f"onnxruntime_{name}"] = path
    return files


def logits(path: Path, images: Sequence[Tensor], *, optimized: bool) -> np.ndarray:
    """Of a file over all images, shape (N, K)."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    if not optimized:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {INPUT: batch.numpy()})[0] for batch in images]).astype(np.float64)


def quality(model: Model, source: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """SQNR and top-1 agreement of every calibrator's file, and its difference to ONNX Runtime's entropy."""
    given = list(batches(model, options.images, seed=options.seed + 1))
    judged = list(batches(model, options.judged_images, seed=options.seed + 2, held_out=True))
    wanted = logits(source, judged, optimized=True)
    rows: dict[str, Any] = {}
    for bits, reduce_range in _WEIGHT_BITS.items():
        files = our_files(model, folder, given, seed=options.seed, reduce_range=reduce_range)
        files |= peer_files(source, folder, given, reduce_range=reduce_range)
        results = {name: logits(path, judged, optimized=reduce_range) for name, path in files.items()}
        reference = results["onnxruntime_entropy"]
        rows[bits] = {
            name: {
                "sqnr_db": db(wanted, found),
                "db_over_onnxruntime_entropy": gain(wanted, found, reference, seed=options.seed),
                "top1_agreement": float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean()),
            }
            for name, found in results.items()
        }
    return {"calibration_images": options.images, "judged_images": len(wanted), **rows}


def db(wanted: np.ndarray, found: np.ndarray) -> float:
    """SQNR in dB."""
    return float(10.0 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()))


def gain(wanted: np.ndarray, found: np.ndarray, reference: np.ndarray, *, seed: int) -> dict[str, Any]:
    """dB by which one file's error is below another's, with a bootstrap over images, both on the same ones."""
    ours, theirs = (((one - wanted) ** 2).sum(axis=1) for one in (found, reference))
    picks = np.random.default_rng(seed).integers(len(wanted), size=(2000, len(wanted)))
    draws = 10.0 * np.log10(theirs[picks].sum(axis=1) / ours[picks].sum(axis=1))
    whole = 10.0 * np.log10(theirs.sum() / ours.sum())
    return {"db": float(whole), "ci95": [float(one) for one in np.percentile(draws, [2.5, 97.5])]}


def goals(found: dict[str, Any]) -> dict[str, Any]:
    """What the project wants of these numbers."""
    own = {bits: found["quality"][bits]["edgekd_entropy"]["db_over_onnxruntime_entropy"] for bits in _WEIGHT_BITS}
    faster = found["speed"]["cpu_times_faster"]["median"]
    growth = found["memory"]["edgekd_most_over_fewest"]
    return {
        "times_faster_per_image": {"at_least": SPEED_GOAL, "found": faster, "met": faster >= SPEED_GOAL},
        "memory_growth": {"at_most": MEMORY_GOAL, "found": growth, "met": growth <= MEMORY_GOAL},
        "entropy_db_over_onnxruntime": {
            "at_least": 0.0,
            "found": own,
            "met": all(one["ci95"][1] >= 0.0 for one in own.values()),
        },
    }


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, NAME)
    parser.add_argument("--model", choices=list(MODELS), default="efficientnet_lite0")
    parser.add_argument("--timed-images", type=int, default=32, help="images of one timed round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64, help="calibration images for the quality")
    parser.add_argument("--judged-images", type=int, default=64, help="evaluation images for the quality")
    parser.add_argument("--memory-images", type=int, nargs="+", default=[16, 512], help="fewest first")
    parser.add_argument("--peer-memory-images", type=int, nargs="+", default=[16, 64], help="fewest first")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = MODELS[options.model]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        module = model.build(options.seed)
        example = next(batches(model, 4, seed=options.seed))
        plain = float_file(module, example, folder / "plain.onnx", target=target("onnxruntime_x86"))
        source = folder / "float.onnx"
        quant_pre_process(str(plain), str(source))
        graph = prepared(module, example, name="entropy", reduce_range=True)
        found = {"speed": speed(model, source, graph, options)}
        found["memory"] = memory(model, source, options)
        found["quality"] = quality(model, source, folder, options)
    results = {"n": options.rounds, "threads": 1, "model": model.name, "goals": goals(found), **found}
    _tell(results)
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results=results)


def _tell(results: dict[str, Any]) -> None:
    for name, goal in results["goals"].items():
        print(name, goal)
    for bits in _WEIGHT_BITS:
        for name, one in results["quality"][bits].items():
            print(f"{bits} {name}: {one['sqnr_db']:.2f} dB, top-1 agreement {one['top1_agreement']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
