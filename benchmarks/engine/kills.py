"""Runs that are killed at random moments and go on: whether they end as the undisturbed run did, and what it costs.

Each run is a fork of one process, so that it begins with the work at once. It is killed by SIGKILL at a moment drawn
uniformly over the time of the undisturbed run, then carried out to its end. Train, distill, quantize with training,
export; every artifact's id is the hash of its content.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import itertools

from _killing import GROUPS, RECIPE, Kill, Nursery, ids_of, journal, judged, whole
from _ratios import at_most, options_of, public
from _record import write

NAME = "engine/kills"


def main(argv: Sequence[str]) -> Path:
    """Kill and write; gives the JSON file."""
    options = parsed(argv)
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as scratch:
        folder = Path(scratch)
        recipe = folder / "kills.toml"
        numbers = {"samples": options.samples, "epochs": options.epochs, "qat_epochs": max(1, options.epochs // 2)}
        recipe.write_text(RECIPE.format(interval=options.interval, **numbers), encoding="utf-8")
        with Nursery(recipe, folder) as nursery:
            undisturbed, ids, steps = reference(nursery, folder)
            kills, too_late = killed(nursery, folder, options, statistics.mean(undisturbed), ids)
    results = {
        "threads": 1,
        "n": len(kills),
        "undisturbed_s": undisturbed,
        "checkpoint_interval_s": options.interval,
        "longest_step_s": max(steps),
        "median_step_s": statistics.median(steps),
        "artifacts": len(ids),
        "ended_before_the_kill": too_late,
        "by_stage": {name: sum(kill.group == name for kill in kills) for name in GROUPS},
        **summary(kills, options.interval + max(steps)),
        "kills": [kill.row() for kill in kills],
    }
    tell(results)
    return write(options.out, name=NAME, seed=options.seed, argv=public(argv), results=results)


def reference(nursery: Nursery, folder: Path) -> tuple[list[float], dict[str, str], list[float]]:
    """Two runs that nobody disturbs: their seconds, their artifacts' ids, and the seconds between two steps.

    Raises:
        SystemExit: the two differ, so that nothing could be said of the others.
    """
    seconds, found, steps = [], [], []
    for name in ("first", "second"):
        out = folder / name
        seconds.append(nursery.run(out)["seconds"])
        found.append(ids_of(out))
        steps += step_seconds(journal(out))
        shutil.rmtree(out)
    if found[0] != found[1]:
        differing = sorted(name for name in found[0] if found[0][name] != found[1].get(name))
        raise SystemExit(f"two undisturbed runs differ in {', '.join(differing) or 'what they made'}")
    return seconds, found[0], steps


def step_seconds(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """How long the steps of a run took: batch over throughput would hide the slow ones, so from line to line."""
    pairs = itertools.pairwise(events)
    both = [pair for pair in pairs if all(one["event"] == "step" for one in pair)]
    return [
        (datetime.fromisoformat(after["utc"]) - datetime.fromisoformat(before["utc"])).total_seconds()
        for before, after in both
    ]


def killed(
    nursery: Nursery, folder: Path, options: argparse.Namespace, seconds: float, ids: Mapping[str, str]
) -> tuple[list[Kill], int]:
    """Every kill, and how many runs were through before theirs."""
    draw = random.Random(options.seed)
    found: list[Kill] = []
    too_late = 0
    while len(found) < options.kills:
        out = folder / f"run{len(found)}"
        answer = nursery.run(out, kill_after=draw.uniform(0.0, seconds))
        if answer["killed"]:
            wholly, events = (not out.exists() or whole(out)), journal(out)
            nursery.run(out)
            found.append(judged(out, answer, wholly, events, ids))
            one = found[-1]
            print(
                f"{len(found)}: after {one.after_s:.2f} s in {one.stage}, identical {one.identical}, whole {one.whole},"
                f" step {one.step} went on with {one.resumed_step}, {one.seconds_lost:.3f} s lost",
                flush=True,
            )
        else:
            too_late += 1
        shutil.rmtree(out)
    return found, too_late


def summary(kills: Sequence[Kill], bound: float) -> dict[str, Any]:
    """Of all kills together.

    Args:
        kills: all of them.
        bound: seconds of training that a kill may cost.
    """
    training = [kill.seconds_lost for kill in kills if kill.step is not None]
    others = [kill.seconds_lost for kill in kills if kill.step is None]
    steps = [kill.step - (kill.resumed_step or 0) for kill in kills if kill.step is not None]
    identical = sum(kill.identical for kill in kills)
    sound = sum(kill.whole and not kill.left for kill in kills)
    goals = {
        "identical": {"exactly": len(kills), "measured": identical, "met": identical == len(kills)},
        "no_half_artifact": {"exactly": len(kills), "measured": sound, "met": sound == len(kills)},
    }
    if training:
        goals["training_seconds_lost"] = at_most(max(training), bound)
    return {
        "identical": identical,
        "whole": sound,
        "in_training": {
            "n": len(training),
            "mean_seconds_lost": statistics.mean(training) if training else None,
            "max_seconds_lost": max(training, default=None),
            "mean_steps_lost": statistics.mean(steps) if steps else None,
            "max_steps_lost": max(steps, default=None),
        },
        "outside_of_training": {
            "n": len(others),
            "mean_seconds_lost": statistics.mean(others) if others else None,
            "max_seconds_lost": max(others, default=None),
        },
        "goals": goals,
    }


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = options_of("kills", __doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between two checkpoints")
    parser.add_argument("--samples", type=int, default=1200, help="training images")
    parser.add_argument("--epochs", type=int, default=6, help="of the float trainings; the int8 one has half")
    options = parser.parse_args(argv)
    if options.quick:
        options.kills, options.samples, options.epochs = 2, 200, 2
    return options


def tell(results: Mapping[str, Any]) -> None:
    print(f"{results['n']} kills, {results['identical']} identical, {results['whole']} whole: {results['by_stage']}")
    print(f"in training: {results['in_training']}")
    print(f"outside of it: {results['outside_of_training']}")
    for name, one in results["goals"].items():
        print(f"goal {name}: {one}")


if __name__ == "__main__":
    main(sys.argv[1:])
