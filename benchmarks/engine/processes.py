"""Images per second of two processes with one thread each against one such process, the whole batch the same.

Both are started by torchrun, train the same student from the same teacher by edgekd's engine, and keep every process
on a core of its own. Launches are interleaved, with and without statistics of the whole batch in batch normalisation.
The first epoch of each launch is left out. What two cores give at best is measured beside it: two single processes that
know nothing of each other (`apart`), since they share caches and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from _cifar_pair import Work
from _ratios import at_least, options_of, public, times
from _record import write

NAME = "engine/processes"
GOAL = 1.8
"""Throughput of two processes over that of one, at least."""

WAYS = ("one", "two", "two_own_statistics", "apart")
_WORKER = Path(__file__).parent / "peers" / "process.py"
_LONGEST = 900


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if len(cores) < 2:
        raise SystemExit("two processes need two cores")
    work = Work(
        batch=options.batch,
        steps=options.steps,
        rounds=options.epochs + 1,
        teacher=options.teacher,
        student=options.student,
        seed=options.seed,
    )
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for count in range(options.rounds):
        for name in WAYS[count % len(WAYS) :] + WAYS[: count % len(WAYS)]:
            found[name].append(launched(name, work, cores))
            print(
                f"{count + 1} {name}: {found[name][-1]['images'] / found[name][-1]['seconds']:.1f} images/s", flush=True
            )
    ratios = {name: times(found, name, "one", seed=options.seed) for name in WAYS[1:]}
    results = {
        "n": options.rounds,
        "batch": options.batch,
        "threads_of_a_process": 1,
        "step_ms_of_one": 1e3 * statistics.median(one["seconds"] / one["steps"] for one in found["one"]),
        "images_per_s": {
            name: statistics.median(one["images"] / one["seconds"] for one in rows) for name, rows in found.items()
        },
        "over_one": ratios,
        "goals": {name: at_least(ratios[name]["ratio"], GOAL) for name in ("two", "two_own_statistics")},
        "note": "ratio_cpu is per processor second of all processes together: 1 if they did the work of one.",
    }
    for name, one in ratios.items():
        print(f"{name}: {one['ratio']:.3f} {one['ci95']}")
    return write(options.out, name=NAME, seed=options.seed, argv=public(argv), results=results)


def launched(way: str, work: Work, cores: Sequence[int]) -> dict[str, Any]:
    """One launch: images and seconds of its steps, and processor seconds of all its processes."""
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as scratch:
        folder = Path(scratch)
        if way == "apart":
            sides = [_started(work, folder / str(core), [core], own=True) for core in cores[:2]]
        else:
            chosen = cores[:1] if way == "one" else cores[:2]
            sides = [_started(work, folder / "only", chosen, own=way == "two_own_statistics")]
        for process in sides:
            if process.wait(timeout=_LONGEST):
                raise RuntimeError(f"a launch of '{way}' ended with {process.returncode}")
        answers = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    images = sum(one["images"] for one in answers if one["rank"] == 0)
    return {
        "images": images,
        "steps": answers[0]["steps"],
        "seconds": max(one["seconds"] for one in answers),
        "cpu_seconds": sum(one["cpu_seconds"] for one in answers),
    }


def _started(work: Work, answer: Path, cores: Sequence[int], *, own: bool) -> subprocess.Popen[bytes]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(cores)}"]
    command = [sys.executable, *launcher, str(_WORKER), work.text(), "--answer", str(answer)]
    command += ["--cores", *map(str, cores), *(["--own-statistics"] if own else [])]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = options_of("processes", __doc__)
    parser.add_argument("--rounds", type=int, default=10, help="launches of each")
    parser.add_argument("--epochs", type=int, default=2, help="of a launch that count")
    parser.add_argument("--batch", type=int, default=128, help="of all processes together")
    parser.add_argument("--steps", type=int, default=6, help="of an epoch")
    parser.add_argument("--teacher", type=int, default=32, help="depth of the residual network, 6 n + 2")
    parser.add_argument("--student", type=int, default=8, help="the same")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.epochs, options.batch, options.steps, options.teacher = 1, 1, 16, 2, 8
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
