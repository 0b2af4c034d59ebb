"""int8 files of edgekd and of the tools people use today, from the same float students: quality, latency, cost, size.

Every tool runs in an environment of its own that this script makes, in a process of its own on one core, and is given
the same float ONNX file and the same calibration images. Every file it makes is judged on the same images and timed
in turns with the others, in ONNX Runtime and in OpenVINO. One JSON file for each student.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
import torch
from _environments import cache_folder
from _photographs import SOURCES
from _record import RESULTS, machine, write
from _runtimes import RUNTIMES, runs
from _scores import Judged, draws_of, judge, logits_of, score, score_difference
from _students import STUDENTS, Task, task_of
from _timing import Rounds, ratios, timed
from _ways import OURS, Limits, Way, carry_out, ways
from numpy.typing import NDArray
from table import markdown

from edgekd.errors import EdgeKDError
from edgekd.export import INPUT

NAME = "quantization/compare"
FLOAT = "float"

_ROOT = Path(__file__).parents[2]
_PRIVATE = ("--out", "--keep", "--run", "--environments", "--photographs")  # where things lie changes no number
_SWITCHES = ("--reuse", "--recreate")
_CALIBRATION = {"photographs": 64, "fashion_mnist": 512}


def main(argv: Sequence[str]) -> list[Path]:
    """Compare and write; gives the JSON files."""
    options = parsed(argv)
    torch.set_num_threads(1)
    reduce_range = _reduced(options.reduce_range)
    chosen = ways(reduce_range=reduce_range)
    written = []
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as scratch:
        for name in options.students:
            results = compared(name, options, chosen, folder=(options.keep or Path(scratch)) / name)
            results["reduce_range"] = reduce_range
            out = options.out / f"quantization_{name}.json"
            written.append(write(out, name=NAME, seed=options.seed, argv=_public(argv), results=results))
            print(markdown(results))
    return written


def compared(name: str, options: argparse.Namespace, chosen: Mapping[str, Way], *, folder: Path) -> dict[str, Any]:
    """Everything about one student."""
    data = STUDENTS[name].data
    task = task_of(
        name,
        folder,
        photographs=options.photographs,
        run=options.run,
        calibration=options.calibration_samples or _CALIBRATION[data],
        crops=options.crops,
        limit=options.limit,
        seed=options.seed,
        reuse=options.reuse,
    )
    taking_part = [way for way in chosen.values() if way.data in (None, data) and (way.name in options.ways)]
    rows = {way.name: made(way, task, folder, options) for way in taking_part}
    files = {FLOAT: task.model, **{key: folder / f"{key}.onnx" for key, row in rows.items() if "error" not in row}}
    quality = {
        runtime: judged(files, task, runtime=runtime, seed=options.seed, reuse=options.reuse)
        for runtime in options.runtimes
    }
    latency = {runtime: _latency(files, task, runtime=runtime, options=options) for runtime in options.runtimes}
    for key in files:
        row = rows.setdefault(key, {"tool": "torch", "setting": "float32"})
        row |= {
            "size_bytes": files[key].stat().st_size,
            "runs": {one: runs(one, files[key]) for one in options.runtimes},
        }
        row["quality"] = {runtime: found[key] for runtime, found in quality.items() if key in found}
        row["latency"] = {runtime: found[key] for runtime, found in latency.items() if key in found}
    return {
        "student": name,
        "packages": list(STUDENTS[name].packages),
        "data": _data(task),
        "n": len(task.inputs),
        "threads": 1,
        "batch": 1,
        "compared_with": OURS,
        "openvino": _version("openvino"),
        "rows": rows,
    }


def made(way: Way, task: Task, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One int8 file and how it was made."""
    print(f"{task.student.name}: {way.name}", file=sys.stderr)
    limits = Limits(options.worker_seconds, int(options.worker_gib * 2**30), core=_idlest_core())
    kept = folder / f"{way.name}.row.json"
    if options.reuse and kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    done = carry_out(way, task, folder, environments=options.environments, recreate=options.recreate, limits=limits)
    row = {"tool": way.tool, "setting": way.setting, **done}
    kept.write_text(json.dumps(row), encoding="utf-8")
    return row


def judged(
    files: Mapping[str, Path], task: Task, *, runtime: str, seed: int, reuse: bool = False
) -> dict[str, dict[str, Any]]:
    """Scores of every file in one runtime, against the float file in the same runtime, and paired with edgekd's."""
    reference = _logits(task.model, task, runtime=runtime, reuse=reuse)
    draws = draws_of(task.groups, seed=seed)
    ours: Judged | None = None
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(files, key=lambda one: one != OURS):
        try:
            logits = reference if name == FLOAT else _logits(files[name], task, runtime=runtime, reuse=reuse)
        except (EdgeKDError, RuntimeError) as error:
            found[name] = {"error": str(error).splitlines()[0]}
            continue
        one = judge(reference, logits, labels=task.labels, draws=draws)
        found[name] = score(one)
        ours = one if name == OURS else ours
        if ours is not None and name not in (OURS, FLOAT):
            found[name]["minus_edgekd"] = score_difference(one, ours)
    return found


def _logits(path: Path, task: Task, *, runtime: str, reuse: bool) -> NDArray[np.float32]:
    kept = path.with_suffix(f".{runtime}.npy")
    if reuse and kept.exists() and kept.stat().st_mtime > path.stat().st_mtime:
        stored: NDArray[np.float32] = np.load(kept)
        if len(stored) == len(task.inputs):
            return stored
    found = logits_of(path, task.inputs, runtime=runtime)
    np.save(kept, found)
    return found


def _latency(
    files: Mapping[str, Path], task: Task, *, runtime: str, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    rounds = Rounds(options.rounds, options.blocks, options.max_seconds, options.warmup_seconds)
    feeds: dict[str, NDArray[np.float32]] = {INPUT: task.inputs[:1]}
    clocks = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}
    found: dict[str, dict[str, Any]] = {name: {} for name in files}
    for clock, clock_ns in clocks.items():
        samples = timed(files, feeds, runtime=runtime, rounds=rounds, seed=options.seed, clock_ns=clock_ns)
        for name, row in ratios(samples, floating=FLOAT, ours=OURS).items():
            found[name][clock] = row
    return found


def _idlest_core() -> int:
    busy = psutil.cpu_percent(interval=0.5, percpu=True)
    return min(os.sched_getaffinity(0), key=lambda core: busy[core])


def _data(task: Task) -> dict[str, Any]:
    licences = {
        source.package: source.licence for source in SOURCES if source.package in task.facts.get("packages", {})
    }
    return {**task.facts, **({"licences": licences} if licences else {})}


def _reduced(asked: str) -> bool:
    return machine()["has_vnni"] is False if asked == "auto" else asked == "on"


def _version(name: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _public(argv: Sequence[str]) -> list[str]:
    words, kept = iter(argv), []
    for word in words:
        if word in _PRIVATE:
            next(words, None)
        elif word not in _SWITCHES and not word.startswith(tuple(f"{one}=" for one in _PRIVATE)):
            kept.append(word)
    return kept


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument(
        "--ways", nargs="+", choices=list(ways(reduce_range=True)), default=list(ways(reduce_range=True))
    )
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--keep", type=Path, help="folder that keeps the ONNX files and what the tools printed")
    parser.add_argument("--reuse", action="store_true", help="do not make again what --keep has")
    parser.add_argument("--environments", type=Path, default=cache_folder() / "environments", help="of the peers")
    parser.add_argument("--photographs", type=Path, default=cache_folder() / "photographs", help="their cache")
    parser.add_argument("--recreate", action="store_true", help="make the peers' environments anew")
    parser.add_argument(
        "--run", type=Path, default=_ROOT / "runs" / "fashion_mnist", help="of examples/fashion_mnist.toml"
    )
    parser.add_argument("--seed", type=int, default=0, help="of crops, draws and orders")
    parser.add_argument("--calibration-samples", type=int, help="default 64 photographs, 512 of Fashion-MNIST")
    parser.add_argument("--crops", type=int, default=3, help="of each evaluation photograph")
    parser.add_argument("--limit", type=int, help="judge on the first images only")
    parser.add_argument("--rounds", type=int, default=120, help="timed runs of each file in each runtime")
    parser.add_argument("--blocks", type=int, default=12, help="times that sessions are opened anew")
    parser.add_argument("--max-seconds", type=float, default=240.0, help="of timing, in each runtime")
    parser.add_argument("--warmup-seconds", type=float, default=3.0, help="at most, in each block")
    parser.add_argument("--worker-seconds", type=float, default=1200.0, help="after which a tool is stopped")
    parser.add_argument("--worker-gib", type=float, default=10.0, help="of memory at which a tool is stopped")
    parser.add_argument(
        "--reduce-range", choices=["auto", "on", "off"], default="auto", help="7-bit weights; auto: without VNNI"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
