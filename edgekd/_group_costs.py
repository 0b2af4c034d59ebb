"""What each fusion group costs in float beyond int8: both files are timed operator by operator, in turns.

The runtime renames, fuses and reorders, so each operator of a file carries its group's number in its name before the
runtime sees it. Which operator belongs to which group is told by order: graph and file list the operators of one
kind in the same order of execution, under names that the exporter is free to change.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch.fx import GraphModule, Node

from edgekd._sensitivity_model import GroupCosts
from edgekd.targets._element_types import FLOAT_TYPES, element_types
from edgekd.targets._graphview import GraphView
from edgekd.targets._groups import Group, behind_quantizers, groups
from edgekd.targets._modelfile import model_from_bytes, read_model
from edgekd.targets._profile import OperatorTime, profile_operators

__all__ = ["group_costs", "grouped"]

_KINDS: Mapping[str, str] = {
    "convolution": "Conv",
    "linear": "Linear",
    "matmul": "MatMul",
    "add": "Add",
    "mul": "Mul",
    "average_pool": "AveragePool",
    "global_average_pool": "GlobalAveragePool",
    "concat": "Concat",
    "sigmoid": "Sigmoid",
    "leaky_relu": "LeakyRelu",
    "softmax": "Softmax",
}
"""By operator of the rule table, the kind that its nodes are told by: their ONNX type, see `_kind`."""

_MARK, _OTHER = re.compile(r"edgekdgroup(\d+)_"), "edgekdother"
_RUNTIME_KIND = re.compile(r"^(?:QLinear|Fused|Q)?([A-Z][A-Za-z]*?)(?:Integer\w*)?$")
_CONVERSIONS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Transpose", "Reshape"}
)
_ELEMENTS = 1 << 18


def group_costs(
    graph: GraphModule,
    feeds: Mapping[str, np.ndarray],
    *,
    float_model: Path | bytes,
    int8_model: Path | bytes,
    repeats: int = 15,
    runs: int = 3,
    threads: int = 1,
) -> GroupCosts:
    """Time every operator of two files in ONNX Runtime, in turns, and give each group the difference.

    Of each operator the shortest repeat counts, each the mean of a few runs: what else the machine does only ever adds.

    Args:
        graph: from `quantize.prepare`; both files come from it or from the network that it was made of.
        feeds: one input batch by name.
        float_model: the network in float, as a file or serialized; `float_twin` gives one to export.
        int8_model: the network in int8.
        repeats: sessions of each file, >= 1.
        runs: timed runs in each session, after three that are not counted.
        threads: of the runtime.

    Raises:
        ModelFileError: a file is damaged, unsafe or refused by the runtime.
    """
    found = groups(graph)
    files = [grouped(one, found) for one in (float_model, int8_model)]
    times: list[list[dict[tuple[str, str], float]]] = [[], []]
    for _ in range(repeats):
        for file, sessions in zip(files, times, strict=True):
            sessions.append(_by_name(profile_operators(file.content, feeds, runs=runs, threads=threads)))
    in_float, in_int8 = (_shared_out(_least(one), file) for one, file in zip(times, files, strict=True))
    quantize_ns, dequantize_ns = _conversion_ns(repeats, threads)
    names = [group.name for group in found]
    return GroupCosts(
        ms={name: (in_float.us[name] - in_int8.us[name]) / 1e3 for name in names},
        int8_ms=in_int8.total_us / 1e3,
        float_ms=in_float.total_us / 1e3,
        assigned=(in_float.told_us + in_int8.told_us) / max(in_float.total_us + in_int8.total_us, 1e-9),
        spread=[name for name in names if name in files[0].lost or name in files[1].lost],
        quantize_ns=quantize_ns,
        dequantize_ns=dequantize_ns,
        batch=max(len(array) for array in feeds.values()),
    )


@dataclass(frozen=True)
class Grouped:
    """A file whose nodes carry the number of their group.

    Args:
        content: the file, nodes renamed.
        names: of the groups, by number.
        made_by: number of the group that makes a tensor; the runtime names blocked-layout operators by what they make.
        lost: groups without a node that could be told, and the kind of their nodes.
    """

    content: bytes
    names: Sequence[str]
    made_by: Mapping[str, int]
    lost: Mapping[str, str]

    def number(self, runtime_name: str) -> int | None:
        """The group of a node of the optimized graph, None for the others."""
        if mark := _MARK.search(runtime_name):
            return int(mark[1])
        return self.made_by.get(runtime_name.removesuffix("_nchwc"))


def grouped(source: Path | bytes, found: Sequence[Group]) -> Grouped:
    """A file in whose nodes' names the number of their group stands."""
    model = model_from_bytes(source) if isinstance(source, bytes) else read_model(source)
    view = GraphView(model)
    nodes = _computing(view)
    number_of = {group.name: number for number, group in enumerate(found)}
    owner: dict[int, int] = {}
    lost: dict[str, str] = {}
    for kind in dict.fromkeys(_KINDS.values()):
        groups_of = [group for group in found if _KINDS.get(group.operator.name) == kind and _is_told(group)]
        if len(nodes.get(kind, [])) == len(groups_of):
            owner |= {id(node): number_of[one.name] for node, one in zip(nodes.get(kind, []), groups_of, strict=True)}
        else:
            lost |= {group.name: kind for group in groups_of}
    lost |= {group.name: _KINDS[group.operator.name] for group in found if not _is_told(group)}
    for node in view.nodes:
        if (before := _joined(node, view)) is not None and id(before) in owner:
            owner[id(node)] = owner[id(before)]
    for position, node in enumerate(view.nodes):
        mark = f"edgekdgroup{owner[id(node)]}_" if id(node) in owner else _OTHER
        node.name = f"{mark}{position}"
    made_by = {name: owner[id(node)] for node in view.nodes if id(node) in owner for name in node.output}
    return Grouped(model.SerializeToString(), [group.name for group in found], made_by, lost)


def _is_told(group: Group) -> bool:
    """Whether order tells a group's node: two activations, so that constants of other operators do not count."""
    inputs: list[Node] = [behind_quantizers(one) for one in group.node.all_input_nodes]
    return group.operator.role != "binary" or (len(inputs) == 2 and all(one.op != "get_attr" for one in inputs))


def _computing(view: GraphView) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that groups are made of, by kind, in the order of execution."""
    types = element_types(view.graph)
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in view.nodes:
        kind = _kind(node, view)
        if kind is None or view.is_foldable(node) or types.get(node.output[0], "") not in FLOAT_TYPES:
            continue
        found.setdefault(kind, []).append(node)
    return found


def _kind(node: onnx.NodeProto, view: GraphView) -> str | None:
    """A node's type; "Linear" for a matrix product with a constant, None for a sum or product with one."""
    with_constant = any(view.is_constant(name) for name in node.input[:2])
    if node.op_type in ("Gemm", "MatMul"):
        return "Linear" if with_constant else "MatMul"
    return None if node.op_type in ("Add", "Mul") and with_constant else str(node.op_type)


def _joined(node: onnx.NodeProto, view: GraphView) -> onnx.NodeProto | None:
    """The node that a ReLU or the bias of a matrix product belongs to."""
    if node.op_type in ("Relu", "Clip"):
        return view.producer(node.input[0])
    if node.op_type != "Add" or _kind(node, view) is not None:
        return None
    made = [one for name in node.input if (one := view.producer(name)) is not None and one.op_type == "MatMul"]
    return made[0] if made else None


def _by_name(times: Sequence[OperatorTime]) -> dict[tuple[str, str], float]:
    """Microseconds by name and type; of nodes that share both, the sum."""
    found: Counter[tuple[str, str]] = Counter()
    for one in times:
        found[one.name, one.op] += one.mean_us  # type: ignore[assignment]
    return dict(found)


def _least(sessions: Sequence[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    return {key: min(one.get(key, 0.0) for one in sessions) for key in sessions[0]}


@dataclass(frozen=True)
class _Shares:
    """Microseconds of each group, of all operators, and of those whose place is known."""

    us: Mapping[str, float]
    total_us: float
    told_us: float


def _shared_out(times: Mapping[tuple[str, str], float], file: Grouped) -> _Shares:
    us = dict.fromkeys(file.names, 0.0)
    told = 0.0
    for (name, op), mean_us in times.items():
        number = file.number(name)
        lost = [one for one, kind in file.lost.items() if number is None and kind in _runtime_kinds(op)]
        for one in lost:
            us[one] += mean_us / len(lost)
        if number is not None:
            us[file.names[number]] += mean_us
        if number is not None or (not lost and (op in _CONVERSIONS or name.startswith(_OTHER))):
            told += mean_us
    return _Shares(us, sum(times.values()), told)


def _runtime_kinds(op: str) -> tuple[str, ...]:
    """The kinds that an operator of the optimized graph may be: `QLinearConv` is a `Conv`."""
    bare = _RUNTIME_KIND.match(op)
    kind = bare[1] if bare is not None else op
    return {"Gemm": ("Linear",), "MatMul": ("Linear", "MatMul")}.get(kind, (kind,))


def _conversion_ns(repeats: int, threads: int) -> tuple[float, float]:
    """Nanoseconds that one element takes to become a code, and to become a float again."""
    scale = numpy_helper.from_array(np.array(0.02, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(128, np.uint8), "zero")
    inputs = [
        helper.make_tensor_value_info("values", TensorProto.FLOAT, [_ELEMENTS]),
        helper.make_tensor_value_info("codes", TensorProto.UINT8, [_ELEMENTS]),
    ]
    outputs = [
        helper.make_tensor_value_info("to_codes", TensorProto.UINT8, [_ELEMENTS]),
        helper.make_tensor_value_info("to_floats", TensorProto.FLOAT, [_ELEMENTS]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["values", "scale", "zero"], ["to_codes"], name="q"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["to_floats"], name="dq"),
    ]
    graph = helper.make_graph(nodes, "conversions", inputs, outputs, [scale, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    values = np.linspace(-2.0, 2.0, _ELEMENTS, dtype=np.float32)
    feeds: dict[str, np.ndarray] = {"values": values, "codes": np.arange(_ELEMENTS, dtype=np.uint8)}
    content = model.SerializeToString()
    sessions = [_by_name(profile_operators(content, feeds, runs=3, threads=threads)) for _ in range(repeats)]
    least = _least(sessions)
    to_codes, to_floats = (
        sum(us for (_, op), us in least.items() if op == wanted) for wanted in ("QuantizeLinear", "DequantizeLinear")
    )
    return 1e3 * to_codes / _ELEMENTS, 1e3 * to_floats / _ELEMENTS
