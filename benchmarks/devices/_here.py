"""A probe of this processor against measurements of real networks, through one connection to the device.

Beside the clock's time stands the processor's time of the one thread that computes (`cpu_ms`), measured in this
process: on a machine that others use, a network of 10 ms never runs undisturbed, and the estimate is of an undisturbed
device.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _counted import NETWORKS, module_of
from _networks import calibrator, float_file, int8_file, target

from edgekd._estimate_probe import probed, undisturbed_ms
from edgekd._estimate_profile import DeviceProfile
from edgekd.devices._base import open_place
from edgekd.devices._place import Place, SessionSettings, Timing
from edgekd.estimate import estimate
from edgekd.targets._modelfile import example_feeds, model_inputs, read_model
from edgekd.targets._onnxruntime import OnnxRuntimeRunner

__all__ = ["here"]

_MEASURED = ("efficientnet_lite0", "mobilenet_v2", "resnet18")
_TARGET = "onnxruntime_x86"
_CPU_RUNS = 60


def here(students: Sequence[Path], seed: int, keep: Path | None = None) -> dict[str, Any]:
    """Probe, then measure and estimate each network as float32 and as int8."""
    with tempfile.TemporaryDirectory() as text, open_place("cpu") as place:
        folder = Path(text)
        files = {**_files(keep or folder, seed), **{f"{one.parent.parent.name}:{one.stem}": one for one in students}}
        profile, rates = probed(place, folder, seconds=2.0, seed=seed)
        rows = [_row(place, name, path, profile, seed) for name, path in files.items()]
    errors = [abs(row["error"]) for row in rows]
    return {
        "profile": profile.model_dump(mode="json"),
        "rates": {name: one.model_dump() for name, one in rates.items()},
        "rows": rows,
        "n": len(rows),
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
    }


def _files(folder: Path, seed: int) -> dict[str, Path]:
    found = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in _MEASURED:
        found[f"{name}:float32"], found[f"{name}:int8"] = (folder / f"{name}_{end}.onnx" for end in ("f", "q"))
        if found[f"{name}:int8"].is_file():
            continue
        module, size = module_of(NETWORKS[name]), NETWORKS[name].size
        images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))
        found[f"{name}:float32"] = float_file(module, images[:1], folder / f"{name}_f.onnx", target=target(_TARGET))
        found[f"{name}:int8"] = int8_file(
            module,
            [images],
            folder / f"{name}_q.onnx",
            target=target(_TARGET),
            reduce_range=False,
            calibrator=calibrator("minmax"),
        )
    return found


def _row(place: Place, name: str, path: Path, profile: DeviceProfile, seed: int) -> dict[str, Any]:
    """One file: what was measured, what was estimated; the estimate is of an undisturbed device, so is the error."""
    feeds = example_feeds(model_inputs(read_model(path)), batch=1, seed=seed)
    place.put({"model.onnx": path})
    timing = Timing(queries=256, max_seconds=5.0, warmup_min=10, warmup_max_seconds=2.0, window=5)
    samples = place.measure({"model": "model.onnx"}, feeds, session=SessionSettings(), timing=timing)
    taken = samples.models["model"].samples_ms
    found = estimate(path, profile=profile)
    quiet, cpu_ms = undisturbed_ms(taken), _cpu_ms(path, feeds)
    row = {
        "name": name,
        "n": len(taken),
        "cpu_ms": cpu_ms,
        "p10_ms": quiet,
        "p50_ms": statistics.median(taken),
        "estimate_ms": found.estimate_ms,
        "lower_ms": found.lower_ms,
        "upper_ms": found.upper_ms,
        "error": found.estimate_ms / cpu_ms - 1.0,
        "error_against_p10": found.estimate_ms / quiet - 1.0,
        "error_against_p50": found.estimate_ms / statistics.median(taken) - 1.0,
        "within_interval": found.lower_ms is not None and found.lower_ms <= cpu_ms <= (found.upper_ms or 0.0),
        "unchecked": found.unchecked,
    }
    print(
        f"{name}: cpu {cpu_ms:.3g} ms, p10 {quiet:.3g}, p50 {row['p50_ms']:.3g}, ESTIMATE {found.estimate_ms:.3g} ms",
        flush=True,
    )
    return row


def _cpu_ms(path: Path, feeds: Mapping[str, np.ndarray]) -> float:
    """Median time of the calling thread, which does all the work where there is one thread."""
    taken = []
    with OnnxRuntimeRunner(path, threads=1) as runner:
        for _ in range(_CPU_RUNS + 5):
            begin = time.thread_time_ns()
            runner.run(feeds)
            taken.append((time.thread_time_ns() - begin) / 1e6)
    return statistics.median(taken[5:])
