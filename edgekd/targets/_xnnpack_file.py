"""What is in an ExecuTorch .pte file: the operators inside the XNNPACK delegate, those outside, and its metadata."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.errors import ModelFileError
from edgekd.targets._xnnpack_library import BACKEND, et_module, executorch_version

__all__ = ["METHOD", "NOTES", "DelegatedOperator", "Program", "Value", "check_pte", "read_pte"]

METHOD = "forward"
"""The method of a file that is the model."""
NOTES = "edgekd"
"""The method of a file that gives its metadata: names of input and output, and what the caller said, as JSON."""

_MAGIC = slice(4, 8)
_EIGHT_BIT = frozenset({"qint8", "quint8", "qcint8"})
_NOT_A_NUMBER = re.compile(rb"(: *)([-+]?(?:inf|nan))")
_WEIGHT_FIELDS = ("filter_id", "bias_id")
_NO_VALUE = 2**32 - 1
"""Where a tensor may be left out."""


@dataclass(frozen=True)
class Value:
    """A tensor inside a delegate.

    Args:
        dtype: "fp32", "qint8", or "qcint8" for one scale a channel.
        shape: as the delegate lays it out, channels last.
        constant: whether it is stored in the file.
        grid: scale and zero-point of codes with one of each, else None.
    """

    dtype: str
    shape: tuple[int, ...]
    constant: bool
    grid: tuple[float, int] | None = None

    @property
    def int8(self) -> bool:
        """Whether it holds 8-bit codes."""
        return self.dtype in _EIGHT_BIT


@dataclass(frozen=True)
class DelegatedOperator:
    """An operator inside a delegate.

    Args:
        kind: its type, "Conv2d".
        name: the module that it comes from, or its type and place.
        data: the tensors that it computes on, weights apart.
        weight: its weight; None for an operator without one.
        results: the tensors that it makes.
    """

    kind: str
    name: str
    data: tuple[int, ...]
    weight: int | None
    results: tuple[int, ...]


@dataclass(frozen=True)
class Delegate:
    """One graph that XNNPACK computes: its operators in their order, and its tensors by number."""

    operators: tuple[DelegatedOperator, ...]
    values: Mapping[int, Value]


@dataclass(frozen=True)
class Program:
    """A file's model.

    Args:
        delegates: the graphs that XNNPACK computes.
        outside: kernels of the operators that stay outside, "aten::addmm.out", once for every call.
        notes: what the file says about itself; empty for a file that edgekd did not make.
    """

    delegates: tuple[Delegate, ...]
    outside: tuple[str, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def int8(self) -> bool:
        """Whether anything in it is quantized."""
        inside = any(value.int8 for one in self.delegates for value in one.values.values())
        return inside or any("quantize_per" in kernel for kernel in self.outside)


def check_pte(path: Path) -> bytes:
    """The content of a file that is an ExecuTorch program, as far as its first bytes tell.

    Raises:
        ModelFileError: missing, empty, a folder, or something else.
    """
    if path.is_dir():
        raise ModelFileError(f"{path}: is a folder, not a .pte file. Give the file inside it.")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file. Check the path, or run `edgekd export` first.") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}.") from error
    if not data[_MAGIC].startswith(b"ET"):
        what = "the file is empty" if not data else "not an ExecuTorch program"
        raise ModelFileError(f"{path}: {what}. Export or copy it again.")
    return data


def read_pte(path: Path) -> Program:
    """Read what a file holds, without running it.

    Raises:
        ModelFileError: missing, damaged, or of another version of ExecuTorch.
        BackendMissing: no ExecuTorch.
    """
    data = check_pte(path)
    deserialize = et_module("exir._serialize._program").deserialize_pte_binary
    try:
        program = deserialize(data).program
        plans = {plan.name: plan for plan in program.execution_plan}
        notes = _notes(plans)
        plan = plans[METHOD]
        delegates = tuple(_delegates(program, plan, notes.get("operators", {})))
    # the reader is generated code that trips over a damaged file in whatever way
    except Exception as error:
        raise ModelFileError(
            f"{path}: ExecuTorch {executorch_version()} cannot read it ({type(error).__name__}): it is damaged, or was"
            " made by another version. Export it again."
        ) from error
    return Program(delegates=delegates, outside=tuple(_outside(plan)), notes=notes)


def _notes(plans: Mapping[str, Any]) -> dict[str, Any]:
    values = plans[NOTES].values if NOTES in plans else []
    texts = [value.val.string_val for value in values if hasattr(value.val, "string_val")]
    found = json.loads(texts[0]) if texts else {}
    return found if isinstance(found, dict) else {}


def _outside(plan: Any) -> Iterator[str]:
    for chain in plan.chains:
        for instruction in chain.instructions:
            index = getattr(instruction.instr_args, "op_index", None)
            if index is not None:
                operator = plan.operators[index]
                yield f"{operator.name}.{operator.overload}" if operator.overload else operator.name


def _delegates(program: Any, plan: Any, names: Mapping[str, str]) -> Iterator[Delegate]:
    for delegate in plan.delegates:
        if delegate.id == BACKEND:
            yield _delegate(bytes(program.backend_delegate_data[delegate.processed.index].data), names)


def _delegate(payload: bytes, names: Mapping[str, str]) -> Delegate:
    graph = _decompiled(payload)
    values = {}
    for one in graph["xvalues"]:
        plain = one["xvalue_union"].get("tensor_value", one["xvalue_union"])
        chosen = one["xvalue_union"].get("quant_params", {})
        values[plain["id_out"]] = Value(
            dtype=plain["datatype"].removeprefix("xnn_datatype_"),
            shape=tuple(plain["dims"]),
            constant=plain["constant_buffer_idx"] != 0,
            grid=(chosen["scale"], chosen["zero_point"]) if "zero_point" in chosen else None,
        )
    operators = (_operator(index, node, names) for index, node in enumerate(graph["xnodes"]))
    return Delegate(tuple(operators), values)


def _operator(index: int, node: Mapping[str, Any], names: Mapping[str, str]) -> DelegatedOperator:
    fields: dict[str, Any] = node["xnode_union"]
    kind = str(node["xnode_union_type"]).removeprefix("XNN")
    ids = {key: int(value) for key, value in fields.items() if key.endswith("_id") and value != _NO_VALUE}
    data = [value for key, value in ids.items() if not key.startswith("output") and key not in _WEIGHT_FIELDS]
    return DelegatedOperator(
        kind=kind,
        name=names.get(str(node["debug_handle"])) or f"{kind}_{index}",
        data=tuple(data),
        weight=ids.get("filter_id"),
        results=tuple(value for key, value in ids.items() if key.startswith("output")),
    )


def _decompiled(payload: bytes) -> dict[str, Any]:
    """The delegate's graph as plain values."""
    serialized = et_module("backends.xnnpack.serialization.xnnpack_graph_serialize")
    header = serialized.XNNHeader.from_bytes(payload[: serialized.XNNHeader.EXPECTED_LENGTH])
    content = payload[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size]
    with tempfile.TemporaryDirectory(prefix="edgekd-pte-") as folder:
        schema, graph = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(serialized._get_schema_bytes())
        graph.write_bytes(content)
        et_module("exir._serialize._flatbuffer")._flatc_decompile(folder, str(schema), str(graph), ["--raw-binary"])
        # infinite bounds of a clamp stand there as a bare word
        text = _NOT_A_NUMBER.sub(rb'\1"\2"', graph.with_suffix(".json").read_bytes())
    found: dict[str, Any] = json.loads(text)
    return found
