"""How long each operator of a model takes in ONNX Runtime, and whether it computes on 8-bit data."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.targets._modelfile import model_from_bytes, read_model
from edgekd.targets._onnxruntime import CPU, OnnxRuntimeRunner

__all__ = ["OperatorTime", "profile_operators", "slow_operators"]

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

    Raises:
        ModelFileError: the model is damaged, unsafe or refused by the runtime.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-profile-") as folder:
        prefix = Path(folder) / "run"
        with OnnxRuntimeRunner(
            _named(source), threads=threads, provider=provider, profile=True, profile_prefix=prefix
        ) as runner:
            for _ in range(_WARMUP_RUNS + runs):
                runner.run(feeds)
            events = json.loads(runner.profile_path().read_text(encoding="utf-8"))
    return _summary(events)


def slow_operators(times: Sequence[OperatorTime], *, limit: int = 5) -> list[str]:
    """The operators of an int8 model that compute or convert in float, the slowest first, one line each."""
    slow = sorted((one for one in times if not one.int8), key=lambda one: -one.mean_us)
    return [f"{one.op} '{one.name}': {one.mean_us:.0f} us, {one.share:.1%}" for one in slow[:limit]]


def _named(source: Path | bytes) -> bytes:
    """The model with a name for every node that has none: its type and what it makes."""
    model = model_from_bytes(source) if isinstance(source, bytes) else read_model(source)
    for node in model.graph.node:
        node.name = node.name or f"{node.op_type}_{node.output[0]}"
    data: bytes = model.SerializeToString()
    return data


def _summary(events: Sequence[Mapping[str, Any]]) -> list[OperatorTime]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            groups.setdefault(str(event["args"]["node_index"]), []).append(event)
    means = {key: statistics.fmean(one["dur"] for one in group[_WARMUP_RUNS:]) for key, group in groups.items()}
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
