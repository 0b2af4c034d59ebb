"""`onnxruntime_perf_test`: its command line, its input files, and what it prints and writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from edgekd.devices._adb_link import safe
from edgekd.devices._place import NodePlacement, SessionSettings
from edgekd.errors import BackendMissing, ModelFileError, UsageError

__all__ = [
    "DUMPS",
    "command",
    "first_ms",
    "input_files",
    "load_ms",
    "output_tensor",
    "peak_bytes",
    "placements",
    "seconds_of",
]

# how the program calls the providers that an Android build can have
_PROVIDERS = {
    "CPUExecutionProvider": "cpu",
    "XnnpackExecutionProvider": "xnnpack",
    "NnapiExecutionProvider": "nnapi",
    "QNNExecutionProvider": "qnn",
    "WebGpuExecutionProvider": "webgpu",
}
_OPTION = re.compile(r"[A-Za-z0-9._/-]+")
_LOAD = re.compile(r"Session creation time cost: ([-+.\deE]+) s")
_FIRST = re.compile(r"First inference time cost: (\d+) ms")
_PEAK = re.compile(r"Peak working set size: (\d+) bytes")
_ROW = re.compile(r".*,([-+.\deE]+),(\d+),(-?\d+),(\d+)")
DUMPS = {
    "ORT_DEBUG_NODE_IO_DUMP_OUTPUT_DATA": "1",
    "ORT_DEBUG_NODE_IO_DUMP_SHAPE_DATA": "0",
    "ORT_DEBUG_NODE_IO_DUMP_NODE_PLACEMENT": "0",
    "ORT_DEBUG_NODE_IO_DUMP_DATA_DESTINATION": "files",
    "ORT_DEBUG_NODE_IO_DUMPING_DATA_TO_FILES_FOR_ALL_NODES_IS_OK": "1",
}
"""Environment of a build with `onnxruntime_DEBUG_NODE_INPUTS_OUTPUTS=1` that writes every tensor to a file."""


def command(
    program: str, model: str, session: SessionSettings, *, repeats: int, result: str = "", profile: str = ""
) -> str:
    """The program's command line, ready for the phone's shell.

    Args:
        program, model, result, profile: remote paths.
        session: threads, provider and its options.
        repeats: timed runs; the program makes one more before them.

    Raises:
        UsageError: a provider that no Android build has, or an option that cannot be sent.
    """
    provider = _PROVIDERS.get(session.provider)
    if provider is None:
        raise UsageError(f"provider must be one of {', '.join(_PROVIDERS)} on a phone, got '{session.provider}'.")
    words = [safe(program), "-e", provider, "-m", "times", "-r", str(repeats), "-x", str(session.threads), "-y", "1"]
    if provider != "cpu" and not session.allow_cpu_fallback:
        # nodes that the provider does not take would move to the processor without a word
        words += ["-C", "'session.disable_cpu_ep_fallback|1'"]
    if session.provider_options:
        words += ["-i", f"'{' '.join(_pair(*pair) for pair in session.provider_options.items())}'"]
    if profile:
        words += ["-p", safe(profile)]
    words.append(safe(model))
    return " ".join([*words, *([safe(result)] if result else [])])


def _pair(key: str, value: str) -> str:
    if not (_OPTION.fullmatch(key) and _OPTION.fullmatch(value)):
        raise UsageError(f"provider option {key}={value} cannot be sent: only letters, digits and ._/- can.")
    return f"{key}|{value}"


def input_files(feeds: Mapping[str, np.ndarray], folder: Path) -> list[Path]:
    """Write the feeds as `input_N.pb`, each an ONNX tensor with the input's name; gives the files."""
    written = []
    for index, (name, array) in enumerate(feeds.items()):
        file = folder / f"input_{index}.pb"
        file.write_bytes(numpy_helper.from_array(np.ascontiguousarray(array), name).SerializeToString())
        written.append(file)
    return written


def seconds_of(text: str) -> list[float]:
    """Seconds of every run, from the program's result file: rows of folder, seconds, peak bytes, CPU share, number.

    Raises:
        BackendMissing: it is not such a file, or a row is missing.
    """
    seconds: list[float] = []
    for line in text.splitlines():
        if not line.strip():
            break  # statistics follow an empty line
        row = _ROW.fullmatch(line.strip())
        if row is None or int(row[4]) != len(seconds) or not math.isfinite(float(row[1])) or float(row[1]) < 0:
            raise BackendMissing(
                f"The runner's result file has the line '{line[:120]}' in place of run {len(seconds)}. It must be an"
                " onnxruntime_perf_test of ONNX Runtime 1.14 or newer."
            )
        seconds.append(float(row[1]))
    return seconds


def load_ms(text: str) -> float:
    """Session creation, from what the program printed, in milliseconds."""
    return 1000.0 * float(_told(_LOAD, text, "session creation time"))


def first_ms(text: str) -> float:
    """The first inference, in whole milliseconds: the program prints no more."""
    return float(_told(_FIRST, text, "first inference time"))


def peak_bytes(text: str) -> int:
    """Largest resident size of the program."""
    return int(_told(_PEAK, text, "peak working set size"))


def _told(pattern: re.Pattern[str], text: str, what: str) -> str:
    found = pattern.search(text)
    if found is None:
        raise BackendMissing(
            f"The runner does not print its {what}. It must be an onnxruntime_perf_test of ONNX Runtime 1.14 or newer."
        )
    return found[1]


def output_tensor(data: bytes, name: str) -> np.ndarray:
    """The array of a tensor file that a debug build wrote.

    Raises:
        ModelFileError: it is not one, or another tensor's.
    """
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(data)
        array = numpy_helper.to_array(tensor)
    except (DecodeError, ValueError, TypeError, RuntimeError) as error:
        raise ModelFileError(f"The phone's file of output '{name}' is damaged: {error}.") from error
    if tensor.name != name:
        raise ModelFileError(f"The phone's file of output '{name}' holds '{tensor.name}'; rename one of the two.")
    return np.asarray(array)


def placements(text: str) -> list[NodePlacement]:
    """Which provider ran each node, from the program's profile; the first run of each node is left out.

    Raises:
        BackendMissing: it is no such profile.
    """
    try:
        events = [event for event in json.loads(text) if _is_kernel(event)]
        groups: dict[str, list[Mapping[str, object]]] = {}
        for event in events:
            groups.setdefault(str(event["name"]).removesuffix("_kernel_time"), []).append(event)
        return [_placement(name, group) for name, group in groups.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendMissing(f"The runner's profile cannot be read ({type(error).__name__}: {error}).") from error


def _is_kernel(event: Mapping[str, object]) -> bool:
    return event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")


def _placement(name: str, events: Sequence[Mapping[str, object]]) -> NodePlacement:
    told = events[0]["args"]
    if not isinstance(told, Mapping):
        raise TypeError("args of a node are no object")
    times = [float(str(event["dur"])) for event in events]
    counted = times[1:] or times
    return NodePlacement(
        node=name,
        op=str(told["op_name"]),
        provider=str(told["provider"]),
        mean_us=sum(counted) / len(counted),
        input_types=_types(told.get("input_type_shape")),
        output_types=_types(told.get("output_type_shape")),
    )


def _types(shapes: object) -> list[str]:
    """Element types of [{"float": [1, 3]}, ...]."""
    if not isinstance(shapes, list):
        return []
    return [_numpy_name(next(iter(shape))) for shape in shapes if isinstance(shape, Mapping) and shape]


def _numpy_name(name: str) -> str:
    return {"float": "float32", "double": "float64"}.get(name, name)
