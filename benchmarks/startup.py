"""Wall time of `edgekd --help` and of other commands that should start at once, and what they import.

Each is a process of its own, so the interpreter's start is in it. The first run may read cold files and is kept apart.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _record import add_common_options, write

NAME = "startup"

COMMANDS = {"--help": ["--help"], "list losses": ["list", "losses"], "run --help": ["run", "--help"]}
HEAVY = ("torch", "onnxruntime", "onnx", "sklearn", "matplotlib", "scipy", "numpy", "accelerate")
GOAL_SECONDS = 0.3

_RUN = "import sys; from edgekd.cli.main import main; sys.argv = ['edgekd', *{words!r}]; main()"


def command_line(words: Sequence[str]) -> list[str]:
    """The installed `edgekd` beside this interpreter, or the same entry point where only the source is there."""
    script = Path(sys.executable).with_name("edgekd")
    return [str(script), *words] if script.exists() else [sys.executable, "-c", _RUN.format(words=list(words))]


def seconds_of(command: Sequence[str]) -> tuple[float, float]:
    """How long one process takes from start to exit: on the clock, and of the processor.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    before, start = _children_cpu_seconds(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - start, _children_cpu_seconds() - before


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def imported(words: Sequence[str]) -> list[str]:
    """Which heavy packages a command imports."""
    command = [sys.executable, "-X", "importtime", "-c", _RUN.format(words=list(words))]
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return [name for name in HEAVY if name in modules]


def timing(words: Sequence[str], runs: int) -> dict[str, Any]:
    """One command's times, in seconds, and its imports."""
    command = command_line(words)
    first = seconds_of(command)[0]
    wall, cpu = zip(*(seconds_of(command) for _ in range(runs)), strict=True)
    heavy = imported(words)
    return {
        "n": runs,
        "first_seconds": first,
        "median_seconds": statistics.median(wall),
        "min_seconds": min(wall),
        "max_seconds": max(wall),
        "median_cpu_seconds": statistics.median(cpu),
        "torch_imported": "torch" in heavy,
        "heavy_imports": heavy,
    }


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, NAME)
    parser.add_argument("--runs", type=int, default=20, help="processes of each command")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    empty = [seconds_of([sys.executable, "-c", "pass"])[0] for _ in range(options.runs)]
    rows = {name: timing(words, options.runs) for name, words in COMMANDS.items()}
    for name, one in rows.items():
        print(
            f"edgekd {name}: median {one['median_seconds']:.3f} s, min {one['min_seconds']:.3f} s, CPU"
            f" {one['median_cpu_seconds']:.3f} s, imports {one['heavy_imports'] or 'nothing heavy'}"
        )
    main_row = rows["--help"]
    goal = {
        "at_most_seconds": GOAL_SECONDS,
        "torch_imported": False,
        "met": main_row["median_seconds"] <= GOAL_SECONDS and not main_row["torch_imported"],
    }
    results = {
        "n": options.runs,
        "goal": goal,
        "interpreter_alone_median_seconds": statistics.median(empty),
        "rows": rows,
    }
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results=results)


if __name__ == "__main__":
    main(sys.argv[1:])
