"""The ways of making an int8 file that are compared, and how one is carried out in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from _environments import NotInstalled, python_of
from _students import Task

__all__ = ["OURS", "Limits", "Way", "carry_out", "ways"]

OURS = "edgekd_ptq"
"""The way that the others are compared with."""

_WORKERS = Path(__file__).parent / "peers"
_ERROR_CHARACTERS = 400
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Way:
    """One tool with one setting.

    Args:
        name: as the results call it.
        tool: who made it.
        setting: what distinguishes it from the tool's other ways, in words.
        worker: script in `peers/`, without `.py`; None for a file that training made.
        environment: a key of `ENVIRONMENTS`; None for edgekd's own.
        options: what the worker is told.
        data: students whose data is called so take part; None for all.
    """

    name: str
    tool: str
    setting: str
    worker: str | None
    environment: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None


@dataclass(frozen=True)
class Limits:
    """What a worker may use before it is stopped.

    Args:
        seconds: on the clock.
        memory_bytes: resident.
        core: the processor it runs on.
    """

    seconds: float
    memory_bytes: int
    core: int


def ways(*, reduce_range: bool) -> dict[str, Way]:
    """Every way by name, edgekd's first.

    Args:
        reduce_range: what each tool advises without VNNI: 7-bit weights; of edgekd weights that share their 8 bits.
    """
    bits = "7-bit weights" if reduce_range else "8-bit weights"
    shares = "weights share 8 bits" if reduce_range else "8-bit weights"
    shared = {"reduce_range": reduce_range}
    file, torch = {**shared, "batch": 1}, {**shared, "batch": 16}
    found = [
        Way(
            OURS,
            "edgekd",
            f"ONNX file, mse, bias correction, {shares}",
            "edgekd_onnx",
            None,
            {**file, "calibrator": "mse"},
        ),
        Way(
            "edgekd_minmax",
            "edgekd",
            f"ONNX file, minmax, bias correction, {shares}",
            "edgekd_onnx",
            None,
            {**file, "calibrator": "minmax"},
        ),
        Way("edgekd_torch", "edgekd", f"torch, mse, {shares}", "edgekd_torch", None, {**torch, "calibrator": "mse"}),
        Way(
            "edgekd_corrected",
            "edgekd",
            f"torch, mse, bias correction, {shares}",
            "edgekd_torch",
            None,
            {**torch, "calibrator": "mse", "corrections": ["bias_correction"]},
        ),
        Way("edgekd_qat", "edgekd", f"QAT with distillation, {shares}", None, data="fashion_mnist"),
    ]
    for method in ("MinMax", "Entropy", "Percentile"):
        name = f"ort_{method.lower()}"
        options = {**shared, "method": method}
        found.append(Way(name, "quantize_static", f"{method}, {bits}", "onnxruntime_static", "onnxruntime", options))
    if reduce_range:
        options = {"reduce_range": False, "method": "MinMax"}
        setting = "MinMax, 8-bit weights"
        found.append(Way("ort_minmax_8bit", "quantize_static", setting, "onnxruntime_static", "onnxruntime", options))
    for preset, fixed in (("performance", "all"), ("mixed", "all"), ("performance", "first layer")):
        if fixed == "all" or reduce_range:
            options = {**shared, "preset": preset, "fixed": fixed}
            name = f"nncf_{preset}" if fixed == "all" else "nncf_first_layer"
            setting = f"PTQ, {preset}, {bits if fixed == 'all' else '7-bit weights in the first layer'}"
            found.append(Way(name, "NNCF", setting, "nncf_onnx", "nncf", options))
    found += [
        Way("nncf_qat", "NNCF", f"QAT, {bits}", "nncf_torch", "nncf", shared, data="fashion_mnist"),
        Way(
            "inc_minmax",
            "Neural Compressor",
            "static, MinMax, 8-bit weights",
            "neural_compressor_onnx",
            "neural_compressor",
            {**shared, "method": "MinMax"},
        ),
    ]
    for method in ("max", "entropy"):
        setting = f"PTQ, {method}, 8-bit weights"
        found.append(Way(f"modelopt_{method}", "ModelOpt", setting, "modelopt_onnx", "modelopt", {"method": method}))
    return {way.name: way for way in found}


def carry_out(
    way: Way, task: Task, folder: Path, *, environments: Path, recreate: bool, limits: Limits
) -> dict[str, Any]:
    """Make one int8 file, `folder/NAME.onnx`, and give what is known about how it was made.

    Returns:
        the worker's record with `process_seconds`, start-up included; or `error`, one sentence, when there is no file.
    """
    output, record, log = (folder / f"{way.name}{suffix}" for suffix in (".onnx", ".json", ".log"))
    for path in (output, record):
        path.unlink(missing_ok=True)
    if way.worker is None:
        return _trained(task, output)
    try:
        python = _python(way.environment, environments, recreate=recreate)
    except NotInstalled as error:
        return {"error": f"does not install: {_short(str(error))}"}
    options = {"student": task.student.name, "source": task.source, **task.training, **way.options}
    command = [
        str(python),
        str(_WORKERS / f"{way.worker}.py"),
        "--model",
        str(task.model),
        "--images",
        str(task.images),
    ]
    command += ["--output", str(output), "--record", str(record), "--options", json.dumps(options)]
    began = time.perf_counter()
    problem = _watched(command, log, limits, _settings(python))
    if problem is None and not (output.exists() and record.exists()):
        problem = _said(log)
    if problem is not None:
        output.unlink(missing_ok=True)
        return {"error": problem}
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return {**found, "process_seconds": time.perf_counter() - began}


def _trained(task: Task, output: Path) -> dict[str, Any]:
    if task.qat is None:
        return {"error": "the run has no file of quantization-aware training"}
    output.write_bytes(task.qat.read_bytes())
    return {}


def _python(environment: str | None, folder: Path, *, recreate: bool) -> Path:
    return Path(sys.executable) if environment is None else python_of(environment, folder, recreate=recreate)


def _watched(command: list[str], log: Path, limits: Limits, settings: Mapping[str, str]) -> str | None:
    """Run to the end on one core, or stop it when it uses too much; says why it was stopped."""
    began = time.monotonic()
    with log.open("wb") as said:
        process = psutil.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=dict(settings), preexec_fn=_pinned(limits.core)
        )
        while process.poll() is None:
            problem = _too_much(process, time.monotonic() - began, limits)
            if problem is not None:
                process.kill()
                process.wait()
                return problem
            time.sleep(_POLL_SECONDS)
    return None


def _too_much(process: psutil.Popen, seconds: float, limits: Limits) -> str | None:
    try:
        resident = process.memory_info().rss
    except psutil.NoSuchProcess:
        return None
    if resident > limits.memory_bytes:
        return f"stopped: it held more than {limits.memory_bytes / 2**30:.0f} GiB of memory"
    return f"stopped: it took more than {limits.seconds:.0f} s" if seconds > limits.seconds else None


def _pinned(core: int) -> Callable[[], None]:
    """One core for everyone: otherwise a tool's seconds tell how many threads it starts."""
    return lambda: os.sched_setaffinity(0, {core})


def _settings(python: Path) -> dict[str, str]:
    """One thread, and the environment's own programs first: NNCF compiles a part of itself with the ninja it brings."""
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **threads, "PATH": path, "PYTHONWARNINGS": "ignore", "NNCF_EXTENSION_LOAD_TIMEOUT": "0"}


def _said(log: Path) -> str:
    """The last line that a worker printed: of a Python error, its type and text."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return _short(lines[-1]) if lines else "ended without a word"


def _short(text: str) -> str:
    """Without this machine's paths, and no longer than a table can bear."""
    plain = text.replace(str(Path.home()), "~")
    return plain if len(plain) <= _ERROR_CHARACTERS else f"{plain[:_ERROR_CHARACTERS]}..."
