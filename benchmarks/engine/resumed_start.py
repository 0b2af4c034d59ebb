"""How long a run that was cut off takes until it trains again, and how long a step waits for a checkpoint.

The recipe's run is killed in the middle of the student's training. Copies of what it left are then gone on with by the
command itself: seconds from the start of the process to the first step of the training, as metrics.jsonl has it.
The second part trains networks of two sizes with checkpoints written every so often, and takes the time for which the
loop hands one over, and how much longer the step is that meets one: it is written beside the steps that follow.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from _cifar_pair import Work, resnet
from _ratios import at_most, options_of, public
from _record import write
from _trainings import COMPUTE, batches_of, losses, settings_of

from edgekd import engine
from edgekd.methods.alone import Alone

NAME = "engine/resumed_start"
GOAL_SECONDS = 5.0
"""From the start of the process to the first step, at most."""

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"
_STAGE = "student"
_JOURNAL = "metrics.jsonl"
_LONGEST = 900.0
_WIDTHS = {"small": (16, 32, 64), "large": (64, 128, 256)}

QUICK = """
name = "quick"

[data]
name = "synthetic"
classes = 4
samples = 400
test_samples = 60
size = [8, 8]

[teacher]
model = "tiny"

[teacher.train]
epochs = 1

[student]
model = "tiny"

[distill]
baseline = false

[distill.train]
epochs = 300
batch_size = 16
lr = 0.01

[watch]
trackers = []
every_seconds = 0.01
"""


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as scratch:
        folder = Path(scratch)
        recipe = options.recipe
        if options.quick:
            recipe = folder / "quick.toml"
            recipe.write_text(QUICK, encoding="utf-8")
        seconds, processor, first = resumed(recipe, folder, options)
        held = {name: holding(widths, folder / name, options) for name, widths in _WIDTHS.items()}
    results = {
        "recipe": recipe.name,
        "n": len(seconds),
        "first_step_after_the_cut": first,
        "seconds_to_first_step": {
            "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "all": seconds,
        },
        "median_cpu_seconds_to_first_step": statistics.median(processor),
        "checkpoint": held,
        "goals": {"seconds_to_first_step": at_most(statistics.median(seconds), GOAL_SECONDS)},
    }  # fmt: skip
    told = f"max {max(seconds):.2f} s, {statistics.median(processor):.2f} s of processor time"
    print(f"first step after {statistics.median(seconds):.2f} s ({told}), going on at step {first}")
    for name, one in held.items():
        print(f"{name}: {one}")
    return write(options.out, name=NAME, seed=options.seed, argv=public(argv), results=results)


def resumed(recipe: Path, folder: Path, options: argparse.Namespace) -> tuple[list[float], list[float], int]:
    """Seconds of every start to the first step, its processor seconds, and the step that this was."""
    cut = folder / "cut"
    process = started(recipe, cut)
    until(process, lambda: any(one["epoch"] >= options.epoch for one in steps_of(cut)))
    stop(process)
    before = len(steps_of(cut))
    seconds, processor, first = [], [], 0
    for count in range(options.runs):
        out = shutil.copytree(cut, folder / f"run{count}")
        now, used = time.time(), _children_cpu_seconds()
        process = started(recipe, out)
        until(process, lambda: len(steps_of(out)) > before)  # noqa: B023  # called before it changes
        stop(process)
        processor.append(_children_cpu_seconds() - used)
        step = steps_of(out)[before]
        seconds.append(datetime.fromisoformat(step["utc"]).timestamp() - now)
        first = step["step"]
        shutil.rmtree(out)
    return seconds, processor, first


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def started(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command that a user gives."""
    command = [sys.executable, "-m", "edgekd.cli", "run", str(recipe), "--out", str(out)]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def until(process: subprocess.Popen[bytes], seen: Callable[[], bool]) -> None:
    """Wait for something in the run's folder.

    Raises:
        RuntimeError: the run ended first.
    """
    limit = time.monotonic() + _LONGEST
    while not seen():
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode} before it could be cut off")
        if time.monotonic() > limit:
            stop(process)
            raise RuntimeError(f"nothing was seen for {_LONGEST:g} s")
        time.sleep(0.02)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill it as a crash would."""
    process.kill()
    process.wait()


def steps_of(out: Path) -> list[dict[str, Any]]:
    """The lines of the student's steps in a run's journal."""
    path = out / _JOURNAL
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    events = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [one for one in events if one["event"] == "step" and one["stage"] == _STAGE]


def holding(widths: Sequence[int], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds that steps wait for checkpoints, of a network of these widths."""
    work = Work(batch=4, steps=options.steps, rounds=1, student=20, seed=options.seed)
    batches = batches_of(work)
    method = Alone(resnet(work.student, work.classes, seed=work.seed, widths=widths), [], losses())
    held: list[float] = []
    gaps: dict[bool, list[float]] = {False: [], True: []}
    state: dict[str, Any] = {"mark": None, "saved": False}
    save = engine._Run._save

    def timed(run: Any, *rest: Any) -> None:
        begun = time.perf_counter()
        save(run, *rest)
        held.append((time.perf_counter() - begun) * 1e3)
        state["saved"] = True

    def on_step(tick: engine.Tick) -> None:
        now = time.perf_counter()
        if state["mark"] is not None:
            gaps[state["saved"]].append((now - state["mark"]) * 1e3)
        state.update(mark=now, saved=False)

    checkpoint = folder.with_suffix(".pt")
    compute = COMPUTE.model_copy(update={"checkpoint_seconds": options.interval})
    engine._Run._save = timed  # type: ignore[method-assign]  # no hook is so near to it
    try:
        engine.fit(
            method, batches, settings=settings_of(work), compute=compute, checkpoint=checkpoint, progress=on_step
        )
    finally:
        engine._Run._save = save  # type: ignore[method-assign]
    return {
        "n": len(held),
        "parameters": sum(one.numel() for one in method.parameters()),
        "checkpoint_bytes": checkpoint.stat().st_size,
        "handed_over_ms": {"median": statistics.median(held), "max": max(held)},
        "step_ms": {
            "without": statistics.median(gaps[False]) if gaps[False] else None,
            "with_a_checkpoint": statistics.median(gaps[True]) if gaps[True] else None,
        },
    }


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = options_of("resumed_start", __doc__)
    parser.add_argument("--recipe", type=Path, default=DIGITS)
    parser.add_argument("--runs", type=int, default=7, help="starts")
    parser.add_argument("--epoch", type=int, default=8, help="of the student, in which the run is cut off")
    parser.add_argument("--steps", type=int, default=120, help="of the trainings with checkpoints")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two checkpoints of those")
    options = parser.parse_args(argv)
    if options.quick:
        options.runs, options.epoch, options.steps, options.interval = 1, 2, 6, 0.01
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
