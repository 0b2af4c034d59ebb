"""ONNX Runtime on the device: sessions as edgekd opens them, what ran each node, and pinning."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import onnxruntime

from .processor import allowed_cores, max_clock_khz

__all__ = [
    "CPU",
    "TENSORRT",
    "Refusal",
    "Session",
    "chosen_cores",
    "engine_placements",
    "node_placements",
    "opened",
    "pinned",
]

CPU = "CPUExecutionProvider"
TENSORRT = "tensorrt"

_CONTROL = frozenset({"If", "Loop", "Scan"})
_WARMUP_RUNS = 3
_LAYOUT_SUFFIX = re.compile(r"_token_\d+$")
"""What the runtime adds to the name of a node whose layout it changed."""
_TASKS = Path("/proc/self/task")


class Refusal(Exception):
    """What was asked for cannot be done here.

    Args:
        kind: "model" the runtime does not take it, "mismatch" the feeds do not fit, "missing" no such provider,
            "gate" a node would run elsewhere, "usage" a wrong argument, "storage" no room.
        text: why.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Session:
    """A model opened with the settings of every measurement: all optimizations, one operator after another.

    Args:
        path: the model.
        settings: `SessionSettings` as plain values.
        profile_prefix: record the time of every operator in a file whose name begins so.

    Raises:
        Refusal: the runtime does not take the model, or lacks the provider.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, profile_prefix: Optional[Path] = None) -> None:
        self.provider_requested = str(settings["provider"])
        _require(self.provider_requested)
        options = _options(settings)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_prefix)
        providers = [(self.provider_requested, dict(settings["provider_options"]))]
        if settings["allow_cpu_fallback"] and self.provider_requested != CPU:
            providers.append((CPU, {}))
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            raise _refusal(path.name, error) from error
        self._session.disable_fallback()
        self.provider_used = str(self._session.get_providers()[0])
        if self.provider_used != self.provider_requested:
            raise Refusal("gate", f"{self.provider_requested} was asked for and {self.provider_used} was started")
        self.output_names = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> List[np.ndarray]:
        """Run once; values in the order of `output_names`.

        Raises:
            Refusal: the feeds do not fit the model's inputs.
        """
        try:
            values: List[np.ndarray] = self._session.run(self.output_names, dict(feeds))
        except Exception as error:
            raise Refusal("mismatch", f"{_line(error)}. {self._wanted(feeds)}") from error
        return values

    def bound(self, feeds: Mapping[str, np.ndarray]) -> Any:
        """The inference alone, as a callable without arguments."""
        run, names, taken = self._session.run, self.output_names, dict(feeds)
        return lambda: run(names, taken)

    def input_name(self) -> str:
        """The name of the first input."""
        return str(self._session.get_inputs()[0].name)

    def run_named(self, name: str, value: np.ndarray) -> List[np.ndarray]:
        """Run once on one input, without checks around it."""
        values: List[np.ndarray] = self._session.run(self.output_names, {name: value})
        return values

    def recorded(self) -> Path:
        """End the recording; its file."""
        return Path(self._session.end_profiling())

    def _wanted(self, feeds: Mapping[str, np.ndarray]) -> str:
        wanted = ", ".join(f"{one.name} {one.type} {one.shape}" for one in self._session.get_inputs())
        got = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in feeds.items())
        return f"The model takes {wanted}; got {got or 'nothing'}"


def opened(path: Path, settings: Mapping[str, Any]) -> Any:
    """A session on the model: ONNX Runtime's, or TensorRT's for the provider "tensorrt", with the same interface."""
    if settings["provider"] == TENSORRT:
        from .gpu import open_model

        return open_model(path, settings)
    return Session(path, settings)


def node_placements(
    path: Path, feeds: Mapping[str, np.ndarray], settings: Mapping[str, Any], *, runs: int, folder: Path, pulse: Any
) -> List[Dict[str, Any]]:
    """Which provider ran each node and how long it took, over `runs` runs after three that are not counted."""
    if settings["provider"] == TENSORRT:
        return engine_placements(opened(path, settings), feeds, runs=runs)
    session = Session(path, settings, profile_prefix=folder / "profile")
    for _ in range(_WARMUP_RUNS + runs):
        session.run(feeds)
        pulse()
    file = session.recorded()
    events = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    began = sorted(one["ts"] for one in events if one.get("cat") == "Session" and one["name"] == "model_run")
    first = began[_WARMUP_RUNS] if len(began) > _WARMUP_RUNS else 0
    groups: Dict[Tuple[str, str], List[Dict[str, Any]]] = {}
    for event in events:
        if _is_node(event) and event["ts"] >= first:
            # the number alone is not enough: it starts anew in every body
            groups.setdefault((event["name"], event["args"].get("node_index", "")), []).append(event)
    return [_placement(group, runs) for group in groups.values()]


def engine_placements(session: Any, feeds: Mapping[str, np.ndarray], *, runs: int) -> List[Dict[str, Any]]:
    """The layers of a TensorRT engine in place of the graph's nodes; its profiler tells no element types."""
    try:
        session.layer_times(feeds, runs=_WARMUP_RUNS)
        times = session.layer_times(feeds, runs=runs)
    finally:
        session.close()
    ran = {"op": "Layer", "provider": TENSORRT, "input_types": [], "output_types": []}
    return [{"node": name, "mean_us": 1e3 * milliseconds, **ran} for name, milliseconds in times]


def chosen_cores(settings: Mapping[str, Any]) -> List[int]:
    """The cores to pin to: those given, or the `threads` fastest; empty for no pinning.

    Raises:
        Refusal: cores that this process may not use.
    """
    allowed = allowed_cores()
    if settings["cores"] is None or allowed is None:
        return []
    if settings["cores"]:
        wrong = sorted(set(settings["cores"]) - set(allowed))
        if wrong:
            raise Refusal("usage", f"cores {wrong} are not among those that may be used there: {allowed}")
        return sorted(set(settings["cores"]))
    threads = int(settings["threads"])
    if not 1 <= threads <= len(allowed):
        raise Refusal("usage", f"threads must be 1 to {len(allowed)}, the cores that may be used there, got {threads}")
    # cores of a big.LITTLE processor differ: the fastest first, then by number
    return sorted(sorted(allowed, key=lambda core: (-max_clock_khz(core), core))[:threads])


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Pin every thread of this process, and those it starts, for the duration; nothing for no cores."""
    before = {task: _affinity(task) for task in _tasks()} if cores else {}
    allowed = set(allowed_cores() or ())
    for task in before:
        _pin(task, set(cores))
    try:
        yield
    finally:
        for task in _tasks() if cores else ():
            _pin(task, before.get(task) or allowed)


def _options(settings: Mapping[str, Any]) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(settings["threads"])
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if settings["provider"] != CPU and not settings["allow_cpu_fallback"]:
        # nodes the provider cannot take would otherwise move to the CPU without a word
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _require(provider: str) -> None:
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise Refusal("missing", f"ONNX Runtime {onnxruntime.__version__} there has no {provider}, but {available}")


def _refusal(name: str, error: Exception) -> Refusal:
    text = _line(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return Refusal("memory", f"{name} does not fit into the memory there: {text}")
    if "fallback to CPU EP has been explicitly disabled" in text:
        return Refusal("gate", f"{name}: some nodes would run on the processor: {text}")
    return Refusal("model", text)


def _is_node(event: Mapping[str, Any]) -> bool:
    return (
        event.get("cat") == "Node"
        and str(event["name"]).endswith("_kernel_time")
        and event["args"].get("op_name") not in _CONTROL
    )


def _placement(group: Sequence[Mapping[str, Any]], runs: int) -> Dict[str, Any]:
    name, arguments = str(group[0]["name"]), group[0]["args"]
    return {
        "node": _LAYOUT_SUFFIX.sub("", name[: -len("_kernel_time")]),
        "op": arguments["op_name"],
        "provider": arguments.get("provider", ""),
        "mean_us": sum(float(one["dur"]) for one in group) / runs,
        # a table of one entry for each value: {"uint8": shape}
        "input_types": [kind for entry in arguments.get("input_type_shape", []) for kind in entry],
        "output_types": [kind for entry in arguments.get("output_type_shape", []) for kind in entry],
    }


def _tasks() -> List[int]:
    """Thread ids of this process; affinity belongs to a thread, not to a process."""
    return [int(entry.name) for entry in _TASKS.iterdir()] if _TASKS.is_dir() else [0]


def _affinity(task: int) -> Optional[set[int]]:
    try:
        return set(os.sched_getaffinity(task))
    except OSError:  # it ended since it was listed
        return None


def _pin(task: int, cores: set[int]) -> None:
    try:
        os.sched_setaffinity(task, cores)
    except OSError:  # it ended since it was listed, or its emulator does not know the call
        return


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
