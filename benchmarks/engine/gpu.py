"""Images per second of larger pairs on a CUDA device: float32, bfloat16, compiled, with the teacher and from a cache.

Says what share of the device's peak the steps reach, counting forward and backward of the student (three times its
forward) and the teacher's forward where it runs. Where there is no CUDA device it says so in one sentence and writes
nothing. The ways of a pair take turns, one short training each; the first steps of each are not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from _cifar_pair import forward_flops
from _ratios import options_of, public, ratio
from _record import write
from _resnet50 import resnet50
from _trainings import losses
from torch import Tensor, nn

from edgekd import cache
from edgekd.batches import Batches
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import InMemorySamples
from edgekd.engine import EpochRecord, FitResult, Hooks, fit
from edgekd.methods.offline import Offline
from edgekd.recipe import AugmentSettings, ComputeSettings, TrainSettings
from edgekd.spec import Preprocessing

NAME = "engine/gpu"


@dataclass(frozen=True)
class LargePair:
    """Two networks and what they see.

    Args:
        teacher, student: `network` builds them.
        size: height and width, pixels.
        classes: K.
        batch: images of a step.
        top_k: logits that the cache keeps; None for all.
    """

    teacher: str
    student: str
    size: int
    classes: int
    batch: int
    top_k: int | None


@dataclass(frozen=True)
class Way:
    """How a pair is trained."""

    precision: Literal["float32", "bfloat16"]
    compiled: bool
    cached: bool


PAIRS = {
    "resnet50_mobilenet_v2_224": LargePair("resnet50", "mobilenet_v2", size=224, classes=1000, batch=256, top_k=32),
    "wrn_40_2_wrn_16_2_32": LargePair("wrn_40_2", "wrn_16_2", size=32, classes=100, batch=512, top_k=None),
}
# members of `edgekd list models`; resnet50 is beside this file
MEMBERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mobilenet_v2": ("mobilenet_v2", {}),
    "wrn_40_2": ("wrn", {"depth": 40, "width": 2.0}),
    "wrn_16_2": ("wrn", {"depth": 16, "width": 2.0}),
}
WAYS = {
    "float32_online": Way("float32", compiled=False, cached=False),
    "bfloat16_online": Way("bfloat16", compiled=False, cached=False),
    "bfloat16_compiled_online": Way("bfloat16", compiled=True, cached=False),
    "float32_cached": Way("float32", compiled=False, cached=True),
    "bfloat16_cached": Way("bfloat16", compiled=False, cached=True),
    "bfloat16_compiled_cached": Way("bfloat16", compiled=True, cached=True),
}
# dense TFLOP/s of the data sheets: bfloat16 on tensor cores, float32 outside of them
PEAKS = {
    "H200": {"bfloat16": 989.0, "float32": 67.0},
    "H100": {"bfloat16": 989.0, "float32": 67.0},
    "A100": {"bfloat16": 312.0, "float32": 19.5},
    "L40": {"bfloat16": 181.0, "float32": 90.5},
    "A10": {"bfloat16": 125.0, "float32": 31.2},
}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main(argv: Sequence[str]) -> Path | None:
    """Measure and write; gives the JSON file, or None where there is no device."""
    options = parsed(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("Nothing was measured: torch finds no CUDA device here.")
        return None
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    rows = {}
    for name in options.pairs:
        rows[name] = row(PAIRS[name], options, peak_of(device))
        for way, one in rows[name]["ways"].items():
            print(f"{name} {way}: {one['images_per_s']:.0f} images/s, share of peak {one['share_of_peak']}", flush=True)
    results = {
        "device": device,
        "cuda": torch.version.cuda,
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "convolution": torch.backends.cudnn.allow_tf32},
        "peak_tflops": peak_of(device),
        "rows": rows,
    }
    return write(options.out, name=NAME, seed=options.seed, argv=public(argv), results=results)


def peak_of(device: str) -> Mapping[str, float] | None:
    """TFLOP/s by precision; None for a device that is not in the list."""
    known = [peaks for name, peaks in PEAKS.items() if name in device]
    return known[0] if known else None


def row(pair: LargePair, options: argparse.Namespace, peak: Mapping[str, float] | None) -> dict[str, Any]:
    """One pair: every way, interleaved."""
    found: dict[str, list[float]] = {name: [] for name in options.ways}
    profiles: dict[str, FitResult] = {}
    batches = batches_of(pair, options)
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as folder:
        seconds = {
            precision: filled(pair, batches, Path(folder) / precision, precision, options)
            for precision in sorted({WAYS[name].precision for name in options.ways if WAYS[name].cached})
        }
        for _ in range(options.rounds):
            for name in options.ways:
                speed, profiles[name] = training(pair, WAYS[name], batches, Path(folder), options)
                found[name].append(speed)
    operations = {
        side: forward_flops(network(name, pair).eval(), pair.size)
        for side, name in (("teacher", pair.teacher), ("student", pair.student))
    }
    return {
        "n": options.rounds,
        "batch": batches.batch_size,
        "input": [3, pair.size, pair.size],
        "forward_flops": operations,
        "cache_rows_per_s": {name: rows / taken for name, (rows, taken) in seconds.items()},
        "ways": {name: summary(WAYS[name], speeds, profiles[name], operations, peak) for name, speeds in found.items()},
        "ratios": {
            f"{name}_over_{options.ways[0]}": ratio(
                [1 / one for one in found[options.ways[0]]], [1 / one for one in found[name]], seed=options.seed
            )
            for name in options.ways[1:]
        },
    }


def summary(
    way: Way,
    speeds: Sequence[float],
    result: FitResult,
    operations: Mapping[str, int],
    peak: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Of one way: throughput, share of the peak, where the time went, and whether compiling was kept."""
    images_per_s = statistics.median(speeds)
    of_an_image = 3 * operations["student"] + (0 if way.cached else operations["teacher"])
    tflops = images_per_s * of_an_image / 1e12
    parts = result.profile.seconds if result.profile else {}
    return {
        "images_per_s": images_per_s,
        "all": list(speeds),
        "tflops": tflops,
        "share_of_peak": None if peak is None else tflops / peak[way.precision],
        "shares": {name: seconds / sum(parts.values()) for name, seconds in parts.items()},
        "compiled": None if result.compiled is None else result.compiled.model_dump(),
    }


def training(
    pair: LargePair, way: Way, batches: Batches, folder: Path, options: argparse.Namespace
) -> tuple[float, FitResult]:
    """Images per second of every epoch but the first."""
    teacher = network(pair.teacher, pair).eval()
    if way.cached:
        kept = fingerprint(pair, batches, way.precision)
        opened = cache.open_cache(str(folder / way.precision), fingerprint=kept)
        if opened is None:
            raise RuntimeError("the cache is not there any more")
        teacher = opened.teacher(batches)
    method = Offline(network(pair.student, pair), [teacher], losses())
    marks: list[float] = []

    def on_epoch(record: EpochRecord) -> None:
        if options.device == "cuda":
            torch.cuda.synchronize()  # the program runs ahead of the device: only now is the epoch through
        marks.append(time.perf_counter())

    settings = TrainSettings(
        epochs=options.epochs + 1, batch_size=batches.batch_size, lr=0.01, schedule="constant", warmup_epochs=0.0
    )
    compute = ComputeSettings(
        device=options.device,
        precision=way.precision,
        compile="auto" if way.compiled else "off",
        threads=options.threads,
    )
    result = fit(method, batches, settings=settings, compute=compute, seed=options.seed, hooks=Hooks(on_epoch=on_epoch))
    return options.epochs * len(batches) * batches.batch_size / (marks[-1] - marks[0]), result


def filled(
    pair: LargePair, batches: Batches, folder: Path, precision: str, options: argparse.Namespace
) -> tuple[int, float]:
    """Build the cache; rows, and the seconds that it took."""
    began = time.perf_counter()
    built = cache.build(
        str(folder),
        network(pair.teacher, pair),
        batches,
        fingerprint=fingerprint(pair, batches, precision),
        epochs=[0],
        compute=ComputeSettings(
            device=options.device, precision=cast(Literal["float32", "bfloat16"], precision), threads=options.threads
        ),
        device=torch.device(options.device),
    )
    return built.rows, time.perf_counter() - began


def fingerprint(pair: LargePair, batches: Batches, precision: str) -> cache.Fingerprint:
    """Of the pair's cache."""
    return cache.fingerprint_of(batches, teacher=pair.teacher, data="noise", top_k=pair.top_k, precision=precision)


def batches_of(pair: LargePair, options: argparse.Namespace) -> Batches:
    """Noise, cropped and flipped on the device; the same order and changes in every epoch."""
    batch = options.batch or pair.batch
    count = batch * options.steps
    generator = torch.Generator().manual_seed(options.seed)
    pixels: Tensor = torch.randint(0, 256, (count, 3, pair.size, pair.size), generator=generator, dtype=torch.uint8)
    return Batches(
        InMemorySamples(pixels, torch.arange(count) % pair.classes),
        batch_size=batch,
        classes=pair.classes,
        preprocessing=Preprocessing(size=[pair.size, pair.size], channels=3, mean=MEAN, std=STD),
        seed=options.seed,
        augment=AugmentSettings(crop=4, flip=True),
        device=options.device,
        views=1,
    )


def network(name: str, pair: LargePair) -> nn.Module:
    """With seeded weights."""
    if name == "resnet50":
        return resnet50(pair.classes, seed=0)
    torch.manual_seed(0)
    model, options = MEMBERS[name]
    family = CATALOGS["models"].load(model).member
    found: nn.Module = family(family.Options(**options)).build(pair.classes, (3, pair.size, pair.size))
    return found


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = options_of("gpu", __doc__)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each way")
    parser.add_argument("--epochs", type=int, default=2, help="of a training that count")
    parser.add_argument("--steps", type=int, default=40, help="of an epoch")
    parser.add_argument("--batch", type=int, help="images of a step; default: each pair's own")
    parser.add_argument("--threads", type=int, default=8, help="of the processor")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the script")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.epochs, options.steps, options.batch = 1, 1, 2, 4
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
