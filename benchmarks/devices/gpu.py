"""Latency and throughput on an NVIDIA GPU: torch, ONNX Runtime's providers and TensorRT engines, in three precisions.

mobilenet_v2, resnet18 and resnet50 at 224 with seeded random weights, batches of 1, 8 and 32. A query starts with the
batch on the host and ends with its logits there; of engines the copies and the inference are timed apart as well, by
the GPU's clock. The ways of a network and batch take turns, query by query. Before anything is timed each way's logits
are compared with those of torch in float32. What cannot be run here is recorded with its reason.

Without a GPU it says so in one sentence, writes nothing and ends with exit code 4.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import onnx
import torch
from _gpu_ways import PRECISIONS, PROVIDERS, Missing, Way, opened, versions
from _networks import Network, calibrator, float_file, inputs, int8_file, target
from _record import add_common_options, write
from _resnet50 import resnet50
from torch import nn

from edgekd.agent.timing import timed_rounds, warm_up
from edgekd.devices._gpu_smi import gpu_state
from edgekd.export import save_onnx
from edgekd.targets._float16 import to_float16

NAME = "devices/gpu"

NETWORKS = {
    "mobilenet_v2": Network("mobilenet_v2", "mobilenet_v2"),
    "resnet18": Network("resnet18", "resnet", {"depth": 18}),
    # its definition is beside the engine's benchmarks; this entry only names its input
    "resnet50": Network("resnet50", "resnet"),
}
WAYS = ("torch_eager", "torch_compile", *PROVIDERS, "tensorrt_engine")
_CPU_WAYS = ("torch_eager", "onnxruntime_cpu", "tensorrt_engine")
_PERCENTILES = (50, 90, 99)
_NO_GPU = 4


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file.

    Raises:
        SystemExit: 4 without a GPU.
    """
    options = parsed(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("Nothing was measured: torch finds no CUDA device here.")
        raise SystemExit(_NO_GPU)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="edgekd-gpu-") as folder:
        for name in options.networks:
            rows[name] = row(NETWORKS[name], Path(folder), options)
    results = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "gpu": _public(gpu_state()),
        "runtimes": versions(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "rows": rows,
    }
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results=results)


def row(network: Network, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One network: its files, and every way at every batch."""
    module = built(network, options.seed)
    files, refused = written(network, module, folder, seed=options.seed, samples=options.calibration_samples)
    found: dict[str, Any] = {**network.facts(), "files_refused": refused, "batches": {}}
    for batch in options.batches:
        data = inputs(network, batch, seed=options.seed + 2).numpy()
        found["batches"][str(batch)] = timed(network, module, files, data, options)
    return found


def built(network: Network, seed: int) -> nn.Module:
    """The network in eval mode, with statistics from data, as those of `_networks`."""
    if network.name != "resnet50":
        return network.build(seed)
    module = resnet50(network.classes, seed=seed)
    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    for one in norms:
        one.momentum = 1.0
    with torch.no_grad():
        module.train()(inputs(network, 8, seed=seed))
    return module.eval()


def written(
    network: Network, module: nn.Module, folder: Path, *, seed: int, samples: int
) -> tuple[dict[str, Path], dict[str, str]]:
    """The ONNX files by precision, by the rules of the target tensorrt; and what could not be written, with reasons."""
    batches = list(torch.split(inputs(network, samples, seed=seed + 1), 4))
    trt = target("tensorrt")
    plain = float_file(module, batches[0], folder / f"{network.name}_float32.onnx", target=trt)
    half = save_onnx(to_float16(onnx.load(plain)), folder / f"{network.name}_float16.onnx")
    files, refused = {"float32": plain, "float16": half}, {}
    try:
        files["int8"] = int8_file(
            module,
            batches,
            folder / f"{network.name}_int8.onnx",
            target=trt,
            reduce_range=False,
            calibrator=calibrator("mse"),
        )
    except Exception as error:  # the other precisions are worth having
        refused["int8"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return files, refused


def timed(
    network: Network, module: nn.Module, files: Mapping[str, Path], data: np.ndarray, options: argparse.Namespace
) -> dict[str, Any]:
    """Every way in every precision on one batch, in turns."""
    with torch.inference_mode():
        wanted = module.to(device="cpu", dtype=torch.float32)(torch.from_numpy(data)).numpy()
    found: dict[str, Any] = {}
    ways: dict[str, Way] = {}
    with contextlib.ExitStack() as stack:
        for way in WAYS if options.device == "cuda" else _CPU_WAYS:
            for precision in PRECISIONS:
                name = f"{way} {precision}"
                if precision not in files and not way.startswith("torch"):
                    found[name] = {"missing": "there is no such file"}
                    continue
                # each way has weights of its own: `.to` changes a module in place
                own = built(network, options.seed) if way.startswith("torch") else module
                try:
                    one = stack.enter_context(
                        opened(way, precision, module=own, files=files, batch=data, device=options.device)
                    )
                    found[name] = {"agreement": agreement(one.query(), wanted), **one.facts}
                    ways[name] = one
                except Missing as missing:
                    found[name] = {"missing": str(missing)}
        _time(ways, found, len(data), options)
    for name, facts in found.items():
        print(f"{network.name} batch {len(data)} {name}: {facts.get('p50_ms', facts.get('missing'))}", flush=True)
    return found


def _time(ways: Mapping[str, Way], found: dict[str, Any], batch: int, options: argparse.Namespace) -> None:
    calls = {name: way.query for name, way in ways.items()}
    steady, warmup = warm_up(calls, minimum=20, max_seconds=options.warmup_seconds, window=10, steady=0.02)
    rounds = timed_rounds(calls, queries=options.queries, max_seconds=options.max_seconds)
    for name, way in ways.items():
        found[name] |= {**summary(rounds.samples_ms[name], batch), "warmup": warmup, "steady": steady}
        if way.session is not None:
            found[name] |= engine_parts(way.session, batch, options)


def summary(samples_ms: Sequence[float], batch: int) -> dict[str, Any]:
    """Percentiles in milliseconds, each a sample that was measured, and images per second.

    >>> summary([1.0, 2.0, 3.0, 4.0], 8)["p50_ms"]
    2.0
    """
    ordered = sorted(samples_ms)
    found: dict[str, Any] = {"queries": len(ordered)}
    for percent in _PERCENTILES:
        # too few samples beyond it say nothing about it
        enough = len(ordered) * (100 - percent) >= 100
        rank = math.ceil(percent / 100 * len(ordered)) - 1
        found[f"p{percent}_ms"] = ordered[rank] if enough or percent == 50 else None
    found["images_per_s"] = 1000.0 * batch * len(ordered) / sum(ordered)
    return found


def engine_parts(session: Any, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Copies and inference of an engine apart, by the GPU's clock, and what it does without copies between."""
    data = {name: session.answer(name).copy() for name, _, _ in session.inputs}
    times = session.timed(data, queries=options.queries)
    parts = {"copy_in": times.copy_in_ms, "gpu": times.gpu_ms, "copy_out": times.copy_out_ms, "host": times.host_ms}
    return {
        "parts": {part: summary(samples, batch) for part, samples in parts.items()},
        "cuda_graph": times.cuda_graph,
        "note": times.note,
        "sync": times.sync,
        "images_per_s_enqueued": batch * session.throughput(data, seconds=1.0),
    }


def agreement(answer: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Cosine of the logits with those of torch in float32, and the share of images of the same class."""
    ours, theirs = answer.astype(np.float64), wanted.astype(np.float64)
    cosine = (ours * theirs).sum() / max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-30)
    return {"cosine": float(cosine), "top1": float((ours.argmax(1) == theirs.argmax(1)).mean())}


def _public(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The GPU's state without what names this one card."""
    return None if state is None else {key: value for key, value in state.items() if key != "uuid"}


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, "devices_gpu")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--queries", type=int, default=1000, help="of each way and batch")
    parser.add_argument("--max-seconds", type=float, default=120.0, help="of timing, for each network and batch")
    parser.add_argument("--warmup-seconds", type=float, default=20.0)
    parser.add_argument("--calibration-samples", type=int, default=32)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the script")
    parser.add_argument("--quick", action="store_true", help="the smallest setting, to see that it works")
    options = parser.parse_args(argv)
    if options.quick:
        options.networks, options.batches, options.queries = options.networks[:1], options.batches[:1], 20
        options.max_seconds, options.warmup_seconds, options.calibration_samples = 5.0, 2.0, 4
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
