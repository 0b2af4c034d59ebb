"""int8 ONNX files judged and timed on the machine at hand: for files that were made on another one.

Every file is given the same images, its logits are compared with the float file's in the same runtime, and all are
timed in turns on one pinned thread, as `compare.py` does where they are made.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from _record import RESULTS, write
from _runtimes import RUNTIMES, runs
from _scores import draws_of, judge, logits_of, score
from _timing import Rounds, ratios, timed
from numpy.typing import NDArray

from edgekd.export import INPUT

NAME = "quantization/files"
FLOAT, OURS = "float", "edgekd_ptq"


def main(argv: Sequence[str]) -> Path:
    """Judge, time and write; gives the JSON file."""
    options = parsed(argv)
    torch.set_num_threads(1)
    files = dict(one.split("=", 1) for one in options.files)
    paths = {FLOAT: options.float, **{name: Path(path) for name, path in files.items()}}
    inputs = images_of(options.images)
    rows: dict[str, dict[str, Any]] = {name: {"size_bytes": path.stat().st_size} for name, path in paths.items()}
    for runtime in options.runtimes:
        for name, found in runtime_rows(paths, inputs, runtime, options).items():
            rows[name][runtime] = found
    results = {"student": options.student, "n": len(inputs), "threads": 1, "batch": 1, "rows": rows}
    shown = ["--student", options.student, "--rounds", str(options.rounds), "--blocks", str(options.blocks)]
    return write(options.out, name=NAME, seed=options.seed, argv=shown, results=results)


def runtime_rows(
    paths: dict[str, Path], inputs: NDArray[np.float32], runtime: str, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """What runs as int8, quality and latency of every file in one runtime."""
    draws = draws_of(np.arange(len(inputs)), seed=options.seed)
    reference = logits_of(paths[FLOAT], inputs, runtime=runtime)
    rows: dict[str, dict[str, Any]] = {}
    for name, path in paths.items():
        logits = reference if name == FLOAT else logits_of(path, inputs, runtime=runtime)
        quality = score(judge(reference, logits, labels=None, draws=draws))
        rows[name] = {"runs": runs(runtime, path), "quality": quality, "latency": {}}
    rounds = Rounds(options.rounds, options.blocks, options.max_seconds, warmup_seconds=2.0)
    for clock, clock_ns in {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}.items():
        feeds = {INPUT: inputs[:1]}
        samples = timed(paths, feeds, runtime=runtime, rounds=rounds, seed=options.seed, clock_ns=clock_ns)
        for name, found in ratios(samples, floating=FLOAT, ours=OURS).items():
            rows[name]["latency"][clock] = found
            print(runtime, clock, name, found, file=sys.stderr)
    return rows


def images_of(path: Path) -> NDArray[np.float32]:
    """Normalised images, shape (N, C, H, W)."""
    with np.load(path, allow_pickle=False) as arrays:
        found: NDArray[np.float32] = arrays["images"].astype(np.float32)
    return found


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="as the results call it")
    parser.add_argument("--float", type=Path, required=True, help="its float ONNX file")
    parser.add_argument("--files", nargs="+", required=True, help=f"NAME=PATH of int8 files; one of them {OURS}")
    parser.add_argument("--images", type=Path, required=True, help=".npz with the array 'images'")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=240)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--max-seconds", type=float, default=45.0, help="of timing, for each runtime and clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "quantization_files.json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
