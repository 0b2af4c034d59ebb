"""Ratios of interleaved rounds with their intervals, what a number was meant to reach, and the scripts' options."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from _record import RESULTS

from edgekd._statistics import compare

__all__ = ["Rounds", "at_least", "at_most", "options_of", "public", "ratio", "speeds", "times"]

Rounds = Mapping[str, Sequence[Mapping[str, Any]]]
_CLOCKS = {"": "seconds", "_cpu": "cpu_seconds"}
_PRIVATE = ("--environments", "--python", "--python-args", "--folder")


def options_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with what every script of this folder takes.

    Args:
        name: of the script.
        description: its docstring.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / f"engine_{name}.json", help="JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="of weights, inputs and moments")
    parser.add_argument("--quick", action="store_true", help="the smallest setting, to see that it works")
    return parser


def public(argv: Sequence[str]) -> list[str]:
    """The arguments without those that only say where something lies on this machine."""
    words, kept = iter(argv), []
    for word in words:
        if word in _PRIVATE:
            next(words, None)
        elif not word.startswith(tuple(f"{one}=" for one in _PRIVATE)):
            kept.append(word)
    return kept


def ratio(slower: Sequence[float], faster: Sequence[float], *, seed: int) -> dict[str, Any]:
    """Median ratio of neighbouring measurements, > 1 where the second is smaller; interval from 10 pairs on."""
    found = compare(slower, faster, seed=seed)
    return {"ratio": found.speedup, "ci95": found.ci95, "n": found.n}


def times(rounds: Rounds, this: str, that: str, *, seed: int) -> dict[str, Any]:
    """How many times the throughput of `that` the one of `this` is: on the clock, and `_cpu` of the processor."""
    found: dict[str, Any] = {}
    for suffix, clock in _CLOCKS.items():
        per_image = [[one[clock] / one["images"] for one in rounds[name]] for name in (that, this)]
        one = ratio(*per_image, seed=seed)
        found |= {f"ratio{suffix}": one["ratio"], f"ci95{suffix}": one["ci95"], "n": one["n"]}
    return found


def speeds(rounds: Rounds) -> dict[str, Any]:
    """Images per second of every way, median over its rounds, and where its time went."""
    found = {}
    for name, answers in rounds.items():
        parts: dict[str, float] = {}
        for one in answers:
            for part, seconds in one.get("parts", {}).items():
                parts[part] = parts.get(part, 0.0) + seconds
        whole = sum(parts.values())
        found[name] = {
            "images_per_s": statistics.median(one["images"] / one["seconds"] for one in answers),
            "images_per_cpu_s": statistics.median(one["images"] / one["cpu_seconds"] for one in answers),
            "n": len(answers),
            **({"shares": {part: seconds / whole for part, seconds in parts.items()}} if parts else {}),
        }
    return found


def at_least(measured: float, bound: float) -> dict[str, Any]:
    """What a number was meant to reach, and whether it does."""
    return {"at_least": bound, "measured": measured, "met": measured >= bound}


def at_most(measured: float, bound: float) -> dict[str, Any]:
    """What a number was not meant to exceed, and whether it does not."""
    return {"at_most": bound, "measured": measured, "met": measured <= bound}
