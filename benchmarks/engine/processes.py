"""Images per second of two processes with one thread each against one such process, the whole batch the same.

All train the same student from the same teacher by edgekd's engine; every process is told of the others as torchrun
tells it, and keeps to a core of its own. An epoch of each takes its turn, so that the moods of the machine meet them
alike: with and without statistics of the whole batch in batch normalisation. The first epoch of each is left out. What
two cores give at best is measured beside it: two single processes that know nothing of each other (`apart`), since
they share caches and memory.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from _cifar_pair import Work
from _ratios import Rounds, at_least, options_of, public, times
from _record import write
from _turns import Together, Worker, interleaved

NAME = "engine/processes"
GOAL = 1.8
"""Throughput of two processes over that of one, at least."""

WAYS = ("one", "two", "two_own_statistics", "apart")
_WORKER = Path(__file__).parent / "peers" / "process.py"


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if len(cores) < 2:
        raise SystemExit("two processes need two cores")
    rows = {str(batch): _compared(_work(options, batch), cores[:2], options) for batch in options.batch}
    results = {
        "n": options.rounds,
        "threads_of_a_process": 1,
        "rows": rows,
        "note": "ratio_cpu is per processor second of all processes together: 1 if they did the work of one.",
    }
    return write(options.out, name=NAME, seed=options.seed, argv=public(argv), results=results)


def _work(options: argparse.Namespace, batch: int) -> Work:
    return Work(
        batch=batch,
        steps=max(1, options.images // batch),
        rounds=options.rounds + 2,  # one to warm up; none of them is the last, after which processes would leave
        teacher=options.teacher,
        student=options.student,
        seed=options.seed,
    )


def _compared(work: Work, cores: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    found = measured(work, cores, rounds=options.rounds)
    ratios = {name: times(found, name, "one", seed=options.seed) for name in WAYS[1:]}
    for name, one in ratios.items():
        print(f"{work.batch} {name}: {one['ratio']:.3f} {one['ci95']}", flush=True)
    return {
        "step_ms_of_one": 1e3 * statistics.median(one["seconds"] / work.steps for one in found["one"]),
        "images_per_s": {
            name: statistics.median(one["images"] / one["seconds"] for one in rows) for name, rows in found.items()
        },
        "over_one": ratios,
        "of_apart": {name: times(found, name, "apart", seed=options.seed) for name in WAYS[1:3]},
        "goals": {name: at_least(ratios[name]["ratio"], GOAL) for name in WAYS[1:3]},
    }


def measured(work: Work, cores: Sequence[int], *, rounds: int) -> Rounds:
    """Epochs of every way: images, seconds until the last process had them, processor seconds of all processes."""
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as scratch, ExitStack() as open_:
        sides = {}
        for way in WAYS:  # one after the other, since members of a launch wait for each other at its start
            members = [
                open_.enter_context(Worker(command, Path(scratch) / f"{way}-{index}", environment=environment))
                for index, (command, environment) in enumerate(_started(way, work, cores))
            ]
            sides[way] = Together(members)
            sides[way].ready()
        found = interleaved(sides, rounds=rounds, warmup=1)
    return {way: [_merged(way, row["members"]) for row in rows] for way, rows in found.items()}


def _merged(way: str, members: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {
        "images": sum(one["images"] for one in (members if way == "apart" else members[:1])),
        "seconds": max(one["seconds"] for one in members),
        "cpu_seconds": sum(one["cpu_seconds"] for one in members),
    }


def _started(way: str, work: Work, cores: Sequence[int]) -> list[tuple[list[str], dict[str, str]]]:
    """Command and environment of every process."""
    command = [sys.executable, str(_WORKER), work.text(), *(["--own-statistics"] if "own" in way else [])]
    if way in ("one", "apart"):
        return [([*command, "--core", str(core)], {}) for core in (cores[:1] if way == "one" else cores)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(len(cores))}
    return [
        ([*command, "--core", str(core)], {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, core in enumerate(cores)
    ]


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = options_of("processes", __doc__)
    parser.add_argument("--rounds", type=int, default=30, help="epochs of each that count")
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 512], help="of all processes together")
    parser.add_argument("--images", type=int, default=1536, help="of an epoch")
    parser.add_argument("--teacher", type=int, default=32, help="depth of the residual network, 6 n + 2")
    parser.add_argument("--student", type=int, default=8, help="the same")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.batch, options.images, options.teacher = 1, [16], 32, 8
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
