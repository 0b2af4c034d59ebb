"""Cold start and peak memory, each measurement in a fresh process so that this one's caches do not flatter it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekd.errors import GateFailed, ModelFileError, UsageError
from edgekd.spec import Frozen

__all__ = ["ColdStart", "cold_start"]

_SCRIPT = Path(__file__).with_name("_coldstart.py")
_TIMEOUT_SECONDS = 300


class ColdStart(Frozen):
    """What the first answer of a new process costs; medians over the repeats.

    The process is new and the runtime's caches are empty; the operating system may still hold the file in memory.

    Args:
        load_ms: reading, optimizing and preparing the model.
        first_ms: the first inference.
        cold_ms: both together.
        peak_bytes: largest resident size of the process.
        baseline_bytes: the same before the model was loaded: interpreter, runtime and input.
        model_bytes: the difference, what the model itself needs.
        repeats: processes started.
    """

    load_ms: float
    first_ms: float
    cold_ms: float
    peak_bytes: int
    baseline_bytes: int
    model_bytes: int
    repeats: int


def cold_start(
    path: Path,
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    repeats: int = 5,
    cores: Sequence[int] = (),
) -> ColdStart:
    """Load a checked ONNX file and run it once, in `repeats` new processes one after another.

    Args:
        path: the file. Check one from elsewhere first: the process opens what the file names.
        feeds: the input arrays.
        threads: intra-op threads.
        provider: execution provider.
        repeats: processes, >= 1; odd, so that the median is one that was measured.
        cores: pin the process to these cores (Linux); empty for no pinning.

    Raises:
        ModelFileError: the model does not load or run.
        GateFailed: it ran on another provider.
        UsageError: repeats under 1.
    """
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, got {repeats}")
    with tempfile.TemporaryDirectory(prefix="edgekd-cold-") as folder:
        archive = Path(folder) / "feeds.npz"
        np.savez(archive, **feeds)  # type: ignore[arg-type]  # the stub takes the names for its own keywords
        arguments = [str(path.resolve()), str(archive), str(threads), provider, ",".join(map(str, cores))]
        runs = [_run(arguments, path) for _ in range(repeats)]
    used = {str(run["provider_used"]) for run in runs}
    if used != {provider}:
        raise GateFailed(f"{path} was to start on {provider} and started on {', '.join(sorted(used))}.")
    middle = {key: statistics.median(float(run[key]) for run in runs) for key in runs[0] if key != "provider_used"}
    return ColdStart(
        load_ms=middle["load_ms"],
        first_ms=middle["first_ms"],
        cold_ms=statistics.median(float(run["load_ms"]) + float(run["first_ms"]) for run in runs),
        peak_bytes=int(middle["peak_bytes"]),
        baseline_bytes=int(middle["baseline_bytes"]),
        model_bytes=int(statistics.median(int(run["peak_bytes"]) - int(run["baseline_bytes"]) for run in runs)),
        repeats=repeats,
    )


def _run(arguments: Sequence[str], path: Path) -> dict[str, float | str]:
    # -P keeps the script's own folder off the import path, where our module names would shadow others'
    command = [sys.executable, "-P", str(_SCRIPT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelFileError(f"{path}: did not load and run once within {_TIMEOUT_SECONDS} s.") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f": exit code {done.returncode}"])[-1]
        # the last line of a traceback is "module.Exception: message"
        raise ModelFileError(f"{path}: does not load and run in a new process: {last.partition(': ')[2] or last}")
    result: dict[str, float | str] = json.loads(done.stdout)
    return result
