"""Images per second of distillation: from a warm cache, with the teacher at work, by hand, and by torchdistill.

The teacher needs at least five times the student's operations. Every way trains the same pair, from the same weights,
on the same images, in the same batches, with SGD, cross entropy and softened probabilities, in float32, with as many
threads as `--threads` says. edgekd's ways write their checkpoint after every epoch, as they do for a recipe. Each way
is a process of its own; they take turns, one epoch each, so that no two ever run at once. `by_hand` makes its batches
by edgekd's own loader; torchdistill, in an environment of its own, by torch's. Time is that of an epoch's steps,
waiting for data included: what edgekd's own profile says, and the clock around the other loops.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "quantization"))
sys.path.insert(0, str(Path(__file__).parent))

from _cifar_pair import Work, forward_flops
from _environments import ENVIRONMENTS, Environment, cache_folder, python_of
from _ratios import Rounds, at_least, at_most, options_of, public, speeds, times
from _record import write
from _trainings import batches_of, student_of, teacher_of
from _turns import Worker, interleaved

from edgekd import cache

NAME = "engine/throughput"
TIMES_THE_STUDENT = 5.0
"""Operations of the teacher over the student's, at least: a cache has to be worth something."""

_PEERS = Path(__file__).parent / "peers"
_PEER = "torchdistill_box"
_NEEDED = Environment(
    first=("torch==2.13.0", "numpy", "pyyaml", "scipy", "pillow"),
    packages=("--no-deps", "torchdistill==1.1.5", "torchvision==0.28.0"),
)
WAYS = ("alone", "online", "cached", "by_hand", "by_hand_channels_last", "torchdistill")
RATIOS = (
    ("cached", "alone"), ("online", "by_hand"), ("online", "by_hand_channels_last"), ("cached", "by_hand"),
    ("cached", "online"), ("online", "torchdistill"), ("cached", "torchdistill"),
)  # fmt: skip


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    work = work_of(options)
    operations = {"teacher": forward_flops(teacher_of(work)), "student": forward_flops(student_of(work).eval())}
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as folder:
        rounds, facts = measured(commands(options, work, Path(folder)), options, Path(folder))
        kept = bytes_per_view(work, Path(folder) / "cache") if "cached" in rounds else None
    results = {
        "threads": options.threads,
        "n": options.rounds,
        "work": {key: getattr(work, key) for key in ("batch", "steps", "views", "teacher", "student", "classes")},
        "forward_flops": {**operations, "teacher_over_student": operations["teacher"] / operations["student"]},
        "bytes_per_view": kept,
        "peer_versions": facts.get("torchdistill", {}).get("versions"),
        "ways": speeds(rounds),
        "loss_of_the_last_round": {name: answers[-1]["loss"] for name, answers in rounds.items()},
        "ratios": ratios(rounds, options.seed),
        "note": "ratio: on the clock; ratio_cpu: of processor time, which other work on the machine lengthens less.",
    }
    results["goals"] = goals(results, operations)
    tell(results)
    return write(options.out, name=NAME, seed=options.seed, argv=public(argv), results=results)


def work_of(options: argparse.Namespace) -> Work:
    """What every way trains.

    Raises:
        SystemExit: the teacher is too small to need a cache.
    """
    work = Work(
        batch=options.batch,
        steps=options.steps,
        rounds=options.rounds + options.warmup,
        teacher=options.teacher,
        student=options.student,
        seed=options.seed,
        threads=options.threads,
    )
    if forward_flops(teacher_of(work)) < TIMES_THE_STUDENT * forward_flops(student_of(work).eval()):
        raise SystemExit(f"the teacher must need {TIMES_THE_STUDENT:g} times the student's operations or more")
    return work


def commands(options: argparse.Namespace, work: Work, folder: Path) -> dict[str, list[str]]:
    """How each way is started, by name."""
    found = {}
    for way in options.ways:
        if way in ("alone", "online", "cached"):
            script = [
                sys.executable,
                str(_PEERS / "edgekd_way.py"),
                way,
                work.text(),
                "--folder",
                str(folder / "cache"),
            ]
        elif way == "torchdistill":
            script = [str(peer_python(options)), str(_PEERS / "torchdistill_way.py"), work.text()]
        else:
            script = [sys.executable, str(_PEERS / "by_hand.py"), work.text()]
            script += ["--channels-last"] if way == "by_hand_channels_last" else []
        found[way] = script
    return found


def peer_python(options: argparse.Namespace) -> Path:
    """torchdistill's interpreter; its environment is made when it is not there yet."""
    if options.python is not None:
        return Path(options.python)
    # the machinery keeps the int8 tools' environments by name; this one is made the same way, and joins them here
    cast(dict[str, Environment], ENVIRONMENTS)[_PEER] = _NEEDED
    return python_of(_PEER, options.environments, recreate=False)


def measured(
    started: Mapping[str, Sequence[str]], options: argparse.Namespace, folder: Path
) -> tuple[Rounds, dict[str, dict[str, Any]]]:
    """Every way's rounds, and what it said of itself."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(command, folder / f"{name}.log")) for name, command in started.items()
        }
        facts = {name: worker.ready() for name, worker in workers.items()}
        return interleaved(workers, rounds=options.rounds, warmup=options.warmup), facts


def bytes_per_view(work: Work, folder: Path) -> int:
    """Of one answer in the cache that was trained from."""
    batches = batches_of(work)
    fingerprint = cache.fingerprint_of(batches, teacher=f"resnet{work.teacher}", data=f"noise {work.seed}")
    opened = cache.open_cache(str(folder), fingerprint=fingerprint)
    if opened is None:
        raise RuntimeError("the cache is not there any more")
    return opened.bytes_per_view


def ratios(rounds: Rounds, seed: int) -> dict[str, Any]:
    """Throughput of one way over another's, of those that were measured."""
    return {
        f"{this}_over_{that}": times(rounds, this, that, seed=seed)
        for this, that in RATIOS
        if this in rounds and that in rounds
    }


def goals(results: Mapping[str, Any], operations: Mapping[str, int]) -> dict[str, Any]:
    """What was aimed at, and whether it is reached."""
    expected = 0.9 * (1 + operations["teacher"] / (3 * operations["student"]))
    bounds = {
        "cached_over_alone": 0.95,
        "online_over_by_hand": 0.98,
        "online_over_by_hand_channels_last": 0.98,
        "cached_over_by_hand": expected,
    }
    found = {
        name: {
            **at_least(results["ratios"][name]["ratio"], bound),
            "measured_cpu": results["ratios"][name]["ratio_cpu"],
        }
        for name, bound in bounds.items()
        if name in results["ratios"]
    }
    if "cached" in results["ways"]:
        found["share_of_reading"] = at_most(results["ways"]["cached"]["shares"]["cache"], 0.05)
    return found


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = options_of("throughput", __doc__)
    parser.add_argument("--rounds", type=int, default=20, help="epochs of each way that count")
    parser.add_argument("--warmup", type=int, default=2, help="epochs of each way that do not")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--teacher", type=int, default=32, help="depth of the residual network, 6 n + 2")
    parser.add_argument("--student", type=int, default=8, help="the same")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--environments", type=Path, default=cache_folder() / "environments", help="of peers")
    parser.add_argument("--python", type=Path, help="an interpreter with torch, torchvision and torchdistill, instead")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.warmup, options.batch, options.steps = 2, 1, 8, 2
    return options


def tell(results: Mapping[str, Any]) -> None:
    for name, way in results["ways"].items():
        print(f"{name}: {way['images_per_s']:.1f} images/s, {way['images_per_cpu_s']:.1f} per processor second")
    for name, one in results["ratios"].items():
        print(f"{name}: {one['ratio']:.3f} {one['ci95']}, of processor time {one['ratio_cpu']:.3f} {one['ci95_cpu']}")
    for name, one in results["goals"].items():
        print(f"goal {name}: {one}")


if __name__ == "__main__":
    main(sys.argv[1:])
