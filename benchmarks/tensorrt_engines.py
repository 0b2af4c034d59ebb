"""TensorRT engines of edgekd's int8 file against the float ones: parsing, audit, build time and size.

Every network is written three times: int8 with Q/DQ by TensorRT's rules and float16 for the rest, float16, and
float32. Each file goes through TensorRT's own parser and is built ahead of time for named compute capabilities, which
TensorRT for RTX does on a machine without a GPU. Running or inspecting an engine does need that GPU, so no latency is
here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from _networks import Network, calibrator, float_file, inputs, int8_file, target
from _record import add_common_options, write
from onnx import numpy_helper

from edgekd.errors import GateFailed
from edgekd.export import save_onnx
from edgekd.targets._engine import build_engine, parse, trt_library
from edgekd.targets._float16 import to_float16

NAME = "tensorrt_engines"

NETWORKS = {
    one.name: one
    for one in (
        Network("mobilenet_v2", "mobilenet_v2"),
        Network("resnet18", "resnet", {"depth": 18}),
        Network("tiny", "tiny", size=16, classes=10),
    )
}
DEFAULT = ("mobilenet_v2", "resnet18")
INT8, HALF, FLOAT = "int8", "float16", "float32"
_BATCH = (1, 1, 8)
_KERNEL_SOURCE = b"__global__"
"""How a kernel begins in CUDA source text."""


def make_files(network: Network, folder: Path, *, seed: int, samples: int) -> dict[str, Path]:
    """The ONNX files of one network, by precision."""
    module = network.build(seed)
    batches = list(torch.split(inputs(network, samples, seed=seed + 1), 4))
    trt = target("tensorrt")
    plain = float_file(module, batches[0], folder / f"{network.name}_{FLOAT}.onnx", target=trt)
    half = save_onnx(to_float16(onnx.load(plain)), folder / f"{network.name}_{HALF}.onnx")
    quantized = int8_file(
        module,
        batches,
        folder / f"{network.name}_{INT8}.onnx",
        target=trt,
        reduce_range=False,
        calibrator=calibrator("mse"),
    )
    return {INT8: quantized, HALF: half, FLOAT: plain}


def weight_bytes(path: Path) -> dict[str, int]:
    """Bytes of the constants of an ONNX file, by element type."""
    found: Counter[str] = Counter()
    for tensor in onnx.load(path).graph.initializer:
        values = numpy_helper.to_array(tensor)
        found[str(values.dtype)] += values.nbytes
    return dict(found)


def parsed_facts(path: Path) -> dict[str, Any]:
    """What TensorRT's parser makes of a file."""
    try:
        network = parse(path)
    except GateFailed as error:
        return {"parser_errors": str(error).splitlines(), "layers": {}}
    return {
        "parser_errors": [],
        "parser_warnings": list(network.warnings),
        "precision": network.precision,
        "layers": network.counts,
    }


def audit_facts(path: Path, layers: Mapping[str, int]) -> dict[str, Any]:
    """How many weighted layers and residual adds are fed by int8 Q/DQ, convolutions counted apart."""
    audit = target("tensorrt").audit(path)
    convolutions = layers.get("CONVOLUTION", 0)
    return {
        "quantizable": audit.quantizable,
        "int8": audit.int8,
        "coverage": audit.coverage,
        "convolutions": convolutions,
        "convolutions_fed_by_int8": convolutions - sum(island.op == "Conv" for island in audit.islands),
        "islands": [f"{island.op} '{island.name}': {island.cause}" for island in audit.islands],
        "float_by_nature": dict(audit.legitimate),
    }


def built_facts(path: Path, capabilities: Sequence[str]) -> dict[str, Any]:
    """Seconds and bytes of the engine for each compute capability.

    TensorRT for RTX leaves element-wise kernels, every quantization among them, as source text with its headers in
    the engine, to be compiled on the device: about 160 KB each. It is text, so a compressed engine has little of it.
    """
    facts = {}
    for capability in capabilities:
        start = time.perf_counter()
        engine = build_engine(path, compute_capability=capability, batch=_BATCH, out=path.parent)
        seconds = time.perf_counter() - start
        plan = engine.path.read_bytes()
        facts[f"sm{capability.replace('.', '')}"] = {
            "build_seconds": seconds,
            "engine_bytes": len(plan),
            "engine_compressed_bytes": len(zlib.compress(plan)),
            "kernels_compiled_on_device": plan.count(_KERNEL_SOURCE),
        }
    return facts


def row(network: Network, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one network."""
    files = make_files(network, folder, seed=options.seed, samples=options.calibration_samples)
    found: dict[str, dict[str, Any]] = {}
    for precision, path in files.items():
        facts: dict[str, Any] = {"onnx_bytes": path.stat().st_size, "weight_bytes": weight_bytes(path)}
        facts |= parsed_facts(path)
        if not facts["parser_errors"]:
            facts["engines"] = built_facts(path, options.compute_capability)
        if precision == INT8:
            facts["audit"] = audit_facts(path, facts["layers"])
        found[precision] = facts
    return {**network.facts(), "batch_profile": list(_BATCH), "files": found, "int8_over": _shares(found)}


def _shares(files: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Size of the int8 file, its weights and its engines as a share of each float one's."""
    shares = {}
    for precision in (HALF, FLOAT):
        ours, other = files[INT8], files[precision]
        shares[precision] = {
            "onnx": ours["onnx_bytes"] / other["onnx_bytes"],
            "weights": sum(ours["weight_bytes"].values()) / sum(other["weight_bytes"].values()),
        }
        for name, engine in ours.get("engines", {}).items():
            shares[precision][name] = engine["engine_bytes"] / other["engines"][name]["engine_bytes"]
    return shares


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, NAME)
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(DEFAULT))
    parser.add_argument("--compute-capability", nargs="+", default=["8.6", "8.9"])
    parser.add_argument("--calibration-samples", type=int, default=16)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> Path:
    """Build and write; gives the JSON file."""
    options = parsed(argv)
    _, library, version = trt_library()
    rows = {}
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as folder:
        for name in options.models:
            rows[name] = row(NETWORKS[name], Path(folder), options)
            _tell(name, rows[name])
    results = {
        "library": library,
        "library_version": version,
        "n": 1,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "note": "Parsed and built only. Running or inspecting an engine needs a GPU of its compute capability.",
        "rows": rows,
    }
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results=results)


def _tell(name: str, result: Mapping[str, Any]) -> None:
    for precision, facts in result["files"].items():
        engines = {
            key: f"{one['engine_bytes'] / 1e6:.2f} MB in {one['build_seconds']:.1f} s"
            for key, one in facts.get("engines", {}).items()
        }
        print(f"{name} {precision}: {len(facts['parser_errors'])} parser errors, {engines}")
    audit = result["files"][INT8]["audit"]
    print(f"  convolutions fed by int8: {audit['convolutions_fed_by_int8']} of {audit['convolutions']}")


if __name__ == "__main__":
    main(sys.argv[1:])
