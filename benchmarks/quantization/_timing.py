"""Latency of many files in one runtime: in turns, each block in another order, paired with float and edgekd."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _runtimes import runner

from edgekd.devices.cpu import Cpu
from edgekd.measure import Protocol, compare, measure

__all__ = ["Rounds", "ratios", "timed"]


@dataclass(frozen=True)
class Rounds:
    """How long is measured.

    Args:
        rounds: of each file.
        blocks: times that sessions are opened anew, in another order, since what ran just before a model and where
            its memory lies change its time by a few percent.
        max_seconds: of timing, in all.
        warmup_seconds: at most, in each block.
    """

    rounds: int
    blocks: int
    max_seconds: float
    warmup_seconds: float


def timed(
    files: Mapping[str, Path],
    feeds: Mapping[str, np.ndarray],
    *,
    runtime: str,
    rounds: Rounds,
    seed: int,
    clock_ns: Callable[[], int],
) -> dict[str, list[float]]:
    """Milliseconds of every run by name, paired by position; one pinned thread.

    Args:
        files: ONNX files by name.
        feeds: one image.
        runtime: which one runs them.
        rounds: how long.
        seed: of the orders.
        clock_ns: the clock on the wall, or the processor time of this process, which others disturb less.
    """
    samples: dict[str, list[float]] = {name: [] for name in files}
    protocol = Protocol(
        queries=math.ceil(rounds.rounds / rounds.blocks),
        max_seconds=rounds.max_seconds / rounds.blocks,
        warmup_min=10,
        warmup_max_seconds=rounds.warmup_seconds,
        window=5,
    )
    rng = np.random.default_rng(seed)
    with Cpu(Cpu.Options()).pinned(1):
        for _ in range(rounds.blocks):
            order = [list(files)[k] for k in rng.permutation(len(files))]
            with ExitStack() as stack:
                runners = {name: stack.enter_context(runner(runtime, files[name])) for name in order}
                measured = measure(runners, feeds, protocol=protocol, clock_ns=clock_ns)
            for name, latency in measured.latencies.items():
                samples[name].extend(latency.samples_ms)
    return samples


def ratios(samples: Mapping[str, Sequence[float]], *, floating: str, ours: str) -> dict[str, dict[str, Any]]:
    """For each file: its median, how many times faster than float it is, and how many times faster than edgekd's."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in samples.items():
        found[name] = {"median_ms": float(np.median(values)), "n": len(values)}
        if name != floating:
            found[name]["speedup_over_float"] = compare(samples[floating], values).model_dump()
        if name != ours and ours in samples:
            found[name]["speedup_over_edgekd"] = compare(samples[ours], values).model_dump()
    return found
