"""A step of quantization-aware distillation against one of float distillation of the same student, both by the engine.

`online` is the float student learning from its teacher; `track`, `learn` and `frozen` are its graph for ONNX Runtime on
x86, learning from the same teacher, while ranges follow the batches, learn, or stand still. Each is a training of its
own in a process of its own; they take turns, one epoch each. The optimizer is the one that the pipeline takes: SGD for
the float student, AdamW with clipped gradients for the int8 one. The teacher's part is the same on both sides and
makes a ratio milder, so `without_teacher` has the ratio of what is left when a teacher's time is taken off both: that
of the same float student from a warm cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from _cifar_pair import Work, forward_flops
from _ratios import Rounds, at_most, options_of, public, ratio, speeds
from _record import write
from _trainings import student_of, teacher_of
from _turns import Worker, interleaved

NAME = "engine/qat_step"
GOAL = 1.3
"""A step of quantization-aware distillation over a float one, at most."""

PHASES = ("track", "learn", "frozen")
_PEERS = Path(__file__).parent / "peers"


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    work = Work(
        batch=options.batch,
        steps=options.steps,
        rounds=options.rounds + options.warmup,
        teacher=options.teacher,
        student=options.student,
        seed=options.seed,
    )
    rounds = measured(work, options)
    ratios = {phase: against(rounds, phase, options.seed) for phase in PHASES}
    results = {
        "threads": 1,
        "n": options.rounds,
        "batch": options.batch,
        "forward_flops": {
            "teacher": forward_flops(teacher_of(work)),
            "student": forward_flops(student_of(work).eval()),
        },
        "median_step_ms": {name: step_ms(answers, options.steps) for name, answers in rounds.items()},
        "ways": speeds(rounds),
        "over_float": ratios,
        "goals": {
            phase: {**at_most(one["ratio"], GOAL), "measured_cpu": one["ratio_cpu"]} for phase, one in ratios.items()
        },
        "note": "ratio: on the clock; ratio_cpu: of processor time, which other work on the machine lengthens less.",
    }
    for phase, one in ratios.items():
        print(f"{phase}: {one['ratio']:.3f} {one['ci95']}, of processor time {one['ratio_cpu']:.3f} {one['ci95_cpu']}")
    return write(options.out, name=NAME, seed=options.seed, argv=public(argv), results=results)


def measured(work: Work, options: argparse.Namespace) -> Rounds:
    """The rounds of every training, by its name."""
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        commands = {
            way: [str(_PEERS / "edgekd_way.py"), way, work.text(), "--folder", str(folder / "cache")]
            for way in ("online", "cached")
        }
        commands |= {phase: [str(_PEERS / "int8_way.py"), phase, work.text()] for phase in PHASES}
        workers = {
            way: stack.enter_context(Worker([sys.executable, *command], folder / f"{way}.log"))
            for way, command in commands.items()
        }
        for worker in workers.values():
            worker.ready()
        return interleaved(workers, rounds=options.rounds, warmup=options.warmup)


def against(rounds: Rounds, phase: str, seed: int) -> dict[str, Any]:
    """A phase over the float step, of both clocks; and with the teacher's time taken off both."""
    found: dict[str, Any] = {}
    for suffix, clock in (("", "seconds"), ("_cpu", "cpu_seconds")):
        seconds = {name: [one[clock] for one in rounds[name]] for name in ("online", "cached", phase)}
        whole = ratio(seconds[phase], seconds["online"], seed=seed)
        found |= {f"ratio{suffix}": whole["ratio"], f"ci95{suffix}": whole["ci95"], "n": whole["n"]}
        rows = zip(seconds[phase], seconds["online"], seconds["cached"], strict=True)
        found[f"without_teacher{suffix}"] = statistics.median(
            (quantized - (online - cached)) / cached for quantized, online, cached in rows
        )
    return found


def step_ms(answers: Sequence[Mapping[str, Any]], steps: int) -> float:
    """Median over the rounds of a step's milliseconds."""
    return 1e3 * statistics.median(one["seconds"] for one in answers) / steps


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = options_of("qat_step", __doc__)
    parser.add_argument("--rounds", type=int, default=16, help="epochs of each that count")
    parser.add_argument("--warmup", type=int, default=2, help="epochs of each that do not")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--teacher", type=int, default=32, help="depth of the residual network, 6 n + 2")
    parser.add_argument("--student", type=int, default=8, help="the same")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.warmup, options.batch, options.steps, options.teacher = 2, 0, 8, 2, 8
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
