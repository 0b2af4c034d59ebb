"""What `measure` and `cold` do on the device: open, pin, warm up, time in turns, read the sensors between rounds."""

from __future__ import annotations

import json
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np

from .sensors import Sensors
from .sessions import TENSORRT, Refusal, Session, chosen_cores, opened, pinned
from .timing import Around, timed_rounds, warm_up

__all__ = ["Pulse", "cold", "measured"]

Pulse = Callable[[int, int], None]
"""Says how many queries are done of how many, so that the host knows that the device lives."""

_COLD_SECONDS = 900.0


def measured(
    models: Mapping[str, Path],
    feeds: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    timing: Mapping[str, Any],
    *,
    image: Optional[np.ndarray],
    sensors: Sensors,
    pulse: Pulse,
) -> Dict[str, Any]:
    """Time models in turns on the same input, as `Measured`.

    Raises:
        Refusal: a model or the feeds are refused, or the cores may not be used.
    """
    cores = chosen_cores(settings)
    with pinned(cores):
        sessions = {name: opened(path, settings) for name, path in models.items()}
        end_to_end = timing["end_to_end"]
        if end_to_end is None:
            calls, around = _bare(sessions, feeds), {}
        else:
            calls, around = _staged(sessions, image, end_to_end)
        return _timed(sessions, calls, around, timing, sensors, pulse, cores)


def _timed(
    sessions: Mapping[str, Session],
    calls: Mapping[str, Callable[[], Any]],
    around: Mapping[str, Around],
    timing: Mapping[str, Any],
    sensors: Sensors,
    pulse: Pulse,
    cores: List[int],
) -> Dict[str, Any]:
    clock, queries = time.perf_counter_ns, int(timing["queries"])
    steady, warmup = warm_up(
        calls,
        minimum=timing["warmup_min"],
        max_seconds=timing["warmup_max_seconds"],
        window=timing["window"],
        steady=timing["steady"],
        around=around,
        each_round=lambda: pulse(0, queries),
    )
    # when each was taken becomes known as "since the first query" only afterwards
    readings = [(clock(), sensors.reading(0.0))]
    every_ns = timing["readings_seconds"] * 1e9

    def between(done: int) -> None:
        pulse(done, queries)
        if every_ns and clock() - readings[-1][0] >= every_ns:
            readings.append((clock(), sensors.reading(0.0)))

    rounds = timed_rounds(calls, queries=queries, max_seconds=timing["max_seconds"], around=around, each_round=between)
    readings.append((clock(), sensors.reading(0.0)))
    models = {
        name: {
            "provider_requested": session.provider_requested,
            "provider_used": session.provider_used,
            "warmup": warmup,
            "steady": steady,
            "started_ms": rounds.started_ms[name],
            "samples_ms": rounds.samples_ms[name],
            "preprocess_ms": rounds.before_ms[name],
            "postprocess_ms": rounds.after_ms[name],
        }
        for name, session in sessions.items()
    }
    return {
        "models": models,
        "readings": [{**reading, "at_ms": (at - rounds.origin_ns) / 1e6} for at, reading in readings],
        "cores": cores,
        "energy_source": sensors.energy_source,
    }


def _bare(sessions: Mapping[str, Session], feeds: Mapping[str, np.ndarray]) -> Dict[str, Callable[[], Any]]:
    for session in sessions.values():
        session.run(feeds)  # so that feeds that do not fit are named before anything is timed
    return {name: session.bound(feeds) for name, session in sessions.items()}


def _staged(sessions: Mapping[str, Session], image: Optional[np.ndarray], settings: Mapping[str, Any]) -> Any:
    """The inference of each model, and from image to input before it and from output to labels after it."""
    if image is None:
        raise Refusal("usage", "end_to_end needs an image that was put there")
    calls: Dict[str, Callable[[], Any]] = {}
    around: Dict[str, Around] = {}
    for name, session in sessions.items():
        calls[name], around[name] = _stages(session, image, settings["preprocessing"], int(settings["top"]))
    return calls, around


def _stages(session: Session, image: np.ndarray, preprocessing: Optional[Dict[str, Any]], top: int) -> Any:
    from .images import prepare

    kept: Dict[str, Any] = {}
    name = session.input_name()

    def before() -> None:
        kept["input"] = image[None] if preprocessing is None else prepare(image, preprocessing)

    def infer() -> None:
        kept["outputs"] = session.run_named(name, kept["input"])

    def after() -> None:
        kept["labels"] = np.argsort(-kept["outputs"][0].reshape(-1), kind="stable")[:top].tolist()

    try:
        before()
        infer()
        after()
    except Refusal:
        raise
    except Exception as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise Refusal("mismatch", f"image {image.dtype} {list(image.shape)} does not fit: {text}") from error
    return infer, (before, after)


def cold(
    program: Path,
    python: Sequence[str],
    model: Path,
    feeds: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    *,
    repeats: int,
    folder: Path,
    pulse: Pulse,
) -> List[Dict[str, Any]]:
    """Start new processes one after another; each loads the model and runs it once, as a list of `Cold`.

    Args:
        program: the file `cold.py`.
        python: what starts an interpreter.
        model: the model.
        feeds: its inputs.
        settings: `SessionSettings` as plain values.
        repeats: processes, >= 1.
        folder: to write the request in.
        pulse: called about once a second.

    Raises:
        Refusal: the model does not load or run, or the process does not start.
    """
    if settings["provider"] == TENSORRT:
        raise Refusal("usage", "a cold start is measured of ONNX Runtime's providers only")
    inputs = {}
    for number, (name, array) in enumerate(feeds.items()):
        inputs[name] = str(folder / f"input{number}.npy")
        np.save(inputs[name], array, allow_pickle=False)
    request = {**settings, "cores": chosen_cores(settings), "model": str(model), "inputs": inputs}
    file = folder / "cold.json"
    file.write_text(json.dumps(request), encoding="utf-8")
    command = [*python, str(program), str(file)]
    return [_one_process(command, model.name, partial(pulse, number, repeats)) for number in range(repeats)]


def _one_process(command: Sequence[str], name: str, alive: Callable[[], None]) -> Dict[str, Any]:
    alive()
    began = time.monotonic_ns()
    try:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise Refusal("missing", f"'{command[0]}' does not start there: {error.strerror}") from error
    with process:
        try:
            said, complaint = _ended(process, began, alive)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0 or not said:
        lines = complaint.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"it ended with code {process.returncode}"
        raise Refusal("model", f"{name} does not load and run in a new process: {last}")
    result = json.loads(said.decode())
    # the system's monotonic clock is the same in every process
    process_ms = (result.pop("imported_ns") - began) / 1e6
    return {"process_ms": process_ms, **result}


def _ended(process: subprocess.Popen[bytes], began: int, alive: Callable[[], None]) -> Any:
    while True:
        try:
            return process.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            alive()
            if time.monotonic_ns() - began > _COLD_SECONDS * 1e9:
                raise Refusal("model", f"a new process did not load and run it within {_COLD_SECONDS:g} s") from None
