"""How long each operator of a model takes in ONNX Runtime, and whether it computes on 8-bit data."""

from __future__ import annotations

import json
import re
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from edgekd.targets._kernels import CONTROL
from edgekd.targets._modelfile import model_from_bytes, read_model
from edgekd.targets._onnxruntime import CPU, OnnxRuntimeRunner
from edgekd.targets._plain import PlainRunner

__all__ = ["OperatorTime", "node_times", "profile_operators", "slow_operators"]

_EIGHT_BIT = frozenset({"int8", "uint8"})
_BOUNDARIES = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_WARMUP_RUNS = 3
_LAYOUT_SUFFIX = re.compile(r"_token_\d+$")
"""What the runtime adds to the name of a node whose layout it changed."""


@dataclass(frozen=True)
class OperatorTime:
    """One operator of the graph that really runs.

    Args:
        name: its name there.
        op: its type.
        provider: the execution provider that ran it.
        mean_us: mean time of a run, in microseconds; recording adds a little to each.
        share: of the time of all operators, in [0, 1].
        int8: whether it computed on 8-bit data; conversions (Q and DQ) do not compute.
    """

    name: str
    op: str
    provider: str
    mean_us: float
    share: float
    int8: bool


def profile_operators(
    source: Path | bytes,
    feeds: Mapping[str, np.ndarray],
    *,
    runs: int = 20,
    threads: int = 1,
    provider: str = CPU,
) -> list[OperatorTime]:
    """Time every operator over `runs` runs, after three that are not counted; the slowest first.

    An operator in the body of a loop has the time of all its rounds; the operator that holds the body is left out.

    Raises:
        ModelFileError: the model is damaged, unsafe or refused by the runtime.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-profile-") as folder:
        prefix = Path(folder) / "run"
        with OnnxRuntimeRunner(
            _named(source), threads=threads, provider=provider, profile=True, profile_prefix=prefix
        ) as runner:
            _, events = _recorded(runner, feeds, runs)
    return _summary(events, runs)


def node_times(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], *, runs: int = 20, threads: int = 1
) -> dict[str, float]:
    """Median time of a run in microseconds by node name, of a graph that the runtime has optimized before.

    Args:
        model: its nodes have unique names; it is run as it is.
        feeds: inputs by name.
        runs: timed ones; three more warm up.
        threads: intra-op threads.

    Raises:
        ModelFileError: the runtime refuses the model.
        MismatchError: the feeds do not fit.
    """
    with (
        tempfile.TemporaryDirectory(prefix="edgekd-profile-") as folder,
        PlainRunner(model, threads=threads, profile_prefix=Path(folder) / "run") as runner,
    ):
        starts, events = _recorded(runner, feeds, runs)
    found: dict[str, list[float]] = {}
    for event in events:
        name = str(event["name"]).removesuffix("_kernel_time")
        # in the body of a loop a node is there once a round, in a branch perhaps not at all
        found.setdefault(name, [0.0] * runs)[bisect_right(starts, event["ts"]) - 1] += event["dur"]
    return {name: median(times) for name, times in found.items()}


def slow_operators(times: Sequence[OperatorTime], *, limit: int = 5) -> list[str]:
    """The operators of an int8 model that compute or convert in float, the slowest first, one line each."""
    slow = sorted((one for one in times if not one.int8), key=lambda one: -one.mean_us)
    return [f"{one.op} '{one.name}': {one.mean_us:.0f} us, {one.share:.1%}" for one in slow[:limit]]


def _recorded(
    runner: OnnxRuntimeRunner | PlainRunner, feeds: Mapping[str, np.ndarray], runs: int
) -> tuple[list[float], list[Mapping[str, Any]]]:
    """When each timed run began, and the events of operators in them."""
    for _ in range(_WARMUP_RUNS + runs):
        runner.run(feeds)
    events = json.loads(runner.profile_path().read_text(encoding="utf-8"))
    began = sorted(event["ts"] for event in events if event.get("cat") == "Session" and event["name"] == "model_run")
    starts = began[_WARMUP_RUNS:]
    return starts, [
        event
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith("_kernel_time")
        and event["ts"] >= starts[0]
        and event["args"]["op_name"] not in CONTROL
    ]


def _named(source: Path | bytes) -> bytes:
    """The model with a name for every node that has none: its type and what it makes."""
    model = model_from_bytes(source) if isinstance(source, bytes) else read_model(source)
    for node in model.graph.node:
        node.name = node.name or f"{node.op_type}_{node.output[0]}"
    data: bytes = model.SerializeToString()
    return data


def _summary(events: Sequence[Mapping[str, Any]], runs: int) -> list[OperatorTime]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for event in events:
        # the number alone is not enough: it starts anew in every body
        groups.setdefault((event["name"], event["args"]["node_index"]), []).append(event)
    means = {key: sum(one["dur"] for one in group) / runs for key, group in groups.items()}
    total = sum(means.values())
    times = [_operator_time(groups[key][0], mean, total) for key, mean in means.items()]
    return sorted(times, key=lambda one: -one.mean_us)


def _operator_time(event: Mapping[str, Any], mean_us: float, total_us: float) -> OperatorTime:
    arguments = event["args"]
    # one single-entry table per input: {"uint8": shape}; parameters such as an int8 weight alone do not make it int8
    kinds = [kind for entry in arguments.get("input_type_shape", [])[:1] for kind in entry]
    if arguments["op_name"] == "QLinearConcat":  # scale and zero-point of the output come before the data
        kinds = [kind for entry in arguments.get("input_type_shape", [])[2:3] for kind in entry]
    return OperatorTime(
        name=_LAYOUT_SUFFIX.sub("", event["name"].removesuffix("_kernel_time")),
        op=arguments["op_name"],
        provider=arguments["provider"],
        mean_us=mean_us,
        share=mean_us / total_us if total_us else 0.0,
        int8=arguments["op_name"] not in _BOUNDARIES and any(kind in _EIGHT_BIT for kind in kinds),
    )
