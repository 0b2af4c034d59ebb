"""Rows per second of building a teacher cache against the bare teacher on the same batches, and what a row takes.

`bare` makes the batches and runs the network in inference mode, in the memory layout that the cache's builder picks,
and keeps nothing. `build` is the whole call into an empty folder: making ready, encoding, writing, hashing. The two
take turns in one process on one thread. Each row of the table is a form of the cache: all logits of few classes, the
largest of many with the mass of the rest, and a layer's output beside the logits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from _cifar_pair import Work
from _ratios import at_least, options_of, public, speeds, times
from _record import write
from _trainings import COMPUTE, batches_of, teacher_of
from torch import nn

from edgekd import cache
from edgekd._compute import faster_layout
from edgekd.batches import Batches

NAME = "engine/cache_build"
GOAL = 0.95
"""Throughput of a build over that of the teacher alone, at least."""


@dataclass(frozen=True)
class Form:
    """What is kept of every view.

    Args:
        classes: of the teacher.
        top_k: so many logits; None for all.
        dtype: of what is kept.
        taps: layers whose outputs are kept too.
    """

    classes: int
    top_k: int | None
    dtype: Any
    taps: tuple[str, ...] = ()


def forms(depth: int) -> dict[str, Form]:
    """By name; the tap is the last block's output, 64 x 8 x 8."""
    last_block = str(3 * ((depth - 2) // 6))
    return {
        "dense_float32": Form(10, None, "float32"),
        "top10_of_1000_float16": Form(1000, 10, "float16"),
        "top100_of_1000_float16": Form(1000, 100, "float16"),
        "dense_and_tap_float16": Form(10, None, "float16", (last_block,)),
    }


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    torch.set_num_threads(1)
    known = forms(options.teacher)
    rows = {name: row(known[name], options) for name in options.forms}
    for name, one in rows.items():
        told = one["build_over_bare"]
        print(f"{name}: {one['bytes_per_view']} bytes a view, build over bare {told['ratio']:.3f} {told['ci95']}")
    results = {
        "threads": 1,
        "teacher": f"CIFAR-style residual network of depth {options.teacher}, 32 x 32 pixels, float32",
        "rows_of_a_build": options.batch * options.batches,
        "note": "ratio: on the clock; ratio_cpu: of processor time, which other work on the machine lengthens less.",
        "rows": rows,
    }
    return write(options.out, name=NAME, seed=options.seed, argv=public(argv), results=results)


def row(form: Form, options: argparse.Namespace) -> dict[str, Any]:
    """One form: its size, and the ratio of interleaved builds and bare runs."""
    work = Work(batch=options.batch, steps=options.batches, teacher=options.teacher, classes=form.classes)
    work = replace(work, seed=options.seed, views=options.rounds + options.warmup)
    batches, teacher = batches_of(work), teacher_of(work)
    found: dict[str, list[dict[str, Any]]] = {"bare": [], "build": []}
    kept = 0
    for count in range(work.views):
        with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as folder:
            both: dict[str, Callable[[], None]] = {
                "bare": lambda: bare(teacher, batches, count),  # noqa: B023  # called before it changes
                "build": lambda: build(folder, form, teacher, batches, count),  # noqa: B023
            }
            for name in list(both) if count % 2 else reversed(list(both)):
                answer = clocked(both[name], work.images)
                if count >= options.warmup:
                    found[name].append(answer)
            kept = kept_bytes(folder, form, batches)
    told = times(found, "build", "bare", seed=options.seed)
    return {
        "classes": form.classes,
        "top_k": form.top_k,
        "dtype": form.dtype,
        "taps": list(form.taps),
        "n": options.rounds,
        "bytes_per_view": kept,
        "share_of_dense_float32": kept / (4 * form.classes),
        "rows_per_s": {name: one["images_per_s"] for name, one in speeds(found).items()},
        "build_over_bare": told,
        "goal": {**at_least(told["ratio"], GOAL), "measured_cpu": told["ratio_cpu"]},
    }


def clocked(call: Callable[[], None], images: int) -> dict[str, Any]:
    """Seconds of one call, on the clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return {
        "images": images,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - processor,
    }


def bare(teacher: nn.Module, batches: Batches, epoch: int) -> None:
    """The teacher on every batch of an epoch; what it says is dropped."""
    layout = faster_layout([teacher], next(batches.epoch(0)).inputs[:2])
    teacher.eval().to(memory_format=layout)  # type: ignore[call-overload]
    with torch.inference_mode():
        for raw in batches.epoch(epoch):
            teacher(raw.inputs.to(memory_format=layout))


def build(folder: str, form: Form, teacher: nn.Module, batches: Batches, epoch: int) -> None:
    """The epoch's cache, from nothing."""
    cache.build(folder, teacher, batches, fingerprint=fingerprint(form, batches), epochs=[epoch], compute=COMPUTE)


def fingerprint(form: Form, batches: Batches) -> cache.Fingerprint:
    """Of the form's cache."""
    return cache.fingerprint_of(
        batches, teacher="bare", data="noise", top_k=form.top_k, dtype=form.dtype, taps=form.taps
    )


def kept_bytes(folder: str, form: Form, batches: Batches) -> int:
    """Of one view in the cache at a place."""
    opened = cache.open_cache(folder, fingerprint=fingerprint(form, batches))
    if opened is None:
        raise RuntimeError("nothing was built")
    return opened.bytes_per_view


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    names = list(forms(32))
    parser = options_of("cache_build", __doc__)
    parser.add_argument("--rounds", type=int, default=12, help="of each that count")
    parser.add_argument("--warmup", type=int, default=1, help="of each that do not")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=8, help="of a round")
    parser.add_argument("--teacher", type=int, default=32, help="depth of the residual network, 6 n + 2")
    parser.add_argument("--forms", nargs="+", choices=names, default=names)
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.warmup, options.batch, options.batches, options.teacher = 2, 0, 8, 2, 8
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
