"""An ONNX file as the operators that run: conversions, biases, normalisations and ReLUs inside the operator they serve.

The element type is the one that really runs: an operator between Q/DQ pairs is int8 if ONNX Runtime's CPU provider has
such a kernel, else float with its conversions around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import inliner, shape_inference

from edgekd._estimate_work import Shape, cost_of, weight_positions
from edgekd._roofline import ElementType, Operator
from edgekd.errors import MismatchError, ModelFileError
from edgekd.targets._element_types import element_types
from edgekd.targets._graphview import GraphView
from edgekd.targets._kernels import ABSORBED, CARRIED, CONTROL, ELEMENTWISE, FLOAT_RESULT, MOVES, WEIGHTED
from edgekd.targets._modelfile import model_inputs, read_model

__all__ = ["Counted", "count_operators"]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FREE = frozenset({"Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators that name the same bytes otherwise."""
_NOT_COUNTED = frozenset({"Constant", "ConstantOfShape", "Shape", "Size", "Range"})
_TAKES_ACTIVATION = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization", "QLinearConv"})
_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "uint8": 1, "bool": 1, "int64": 8}
_EIGHT_BITS = ("int8", "uint8")
_SHAPE_ELEMENTS = 1024  # arithmetic on sizes, indices and the like is never worth a line


@dataclass(frozen=True)
class Counted:
    """The operators of a file, in the order of execution.

    Args:
        operators: as they run.
        batch: samples in one inference.
        notes: what could not be counted, one sentence each.
    """

    operators: tuple[Operator, ...]
    batch: int
    notes: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(one.macs for one in self.operators)


def count_operators(
    source: Path | onnx.ModelProto, *, batch: int = 1, sizes: Mapping[str, int] | None = None
) -> Counted:
    """Walk an ONNX file.

    Args:
        source: the file, or a model with its tensors inside.
        batch: size of a dynamic first dimension, >= 1.
        sizes: sizes of other dynamic dimensions by name.

    Raises:
        ModelFileError: the file is damaged or unsafe, a dynamic dimension has no size, or no shape can be told.
        MismatchError: the file has a fixed first dimension other than `batch`.
    """
    model = read_model(source) if isinstance(source, Path) else source
    if model.functions:
        model = inliner.inline_local_functions(model)
    fixed = _with_sizes(model, batch, sizes or {})
    try:
        inferred = shape_inference.infer_shapes(fixed, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelFileError(f"The shapes of the model cannot be told: {first}.") from error
    return _Walk(inferred).counted(batch)


def _with_sizes(model: onnx.ModelProto, batch: int, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """A copy whose inputs have no dynamic dimension; stored shapes of what they lead to are told anew."""
    specs = {one.name: one for one in model_inputs(model)}
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    known = dict(sizes)
    for value in fixed.graph.input:
        if value.name not in specs:
            continue
        shape = specs[value.name].shape
        for axis, (dim, size) in enumerate(zip(value.type.tensor_type.shape.dim, shape, strict=False)):
            if isinstance(size, str):
                wanted = known.setdefault(size, batch) if axis == 0 else known.get(size)
                if wanted is None:
                    raise ModelFileError(
                        f"Input '{value.name}' {shape}: dimension {axis} ('{size}') is dynamic and has no value."
                        f" Give one, for example --size {size}=224."
                    )
                dim.dim_value = wanted
            elif axis == 0 and batch != 1 and size != batch:
                raise MismatchError(
                    f"Input '{value.name}' has a fixed first dimension of {size}; a batch of {batch} does not fit."
                    " Export the model with a dynamic batch, or leave --batch out."
                )
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return fixed


class _Walk:
    """One pass over a graph whose shapes are known."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._view = GraphView(model)
        self._shapes = _shapes(model.graph)
        self._types = element_types(model.graph)
        self._int8: set[int] = set()
        self._inside: set[int] = set()  # nodes that another node computes along with itself
        self._clamped: set[int] = set()  # nodes with a ReLU or the like inside
        self._made: dict[int, str] = {}  # what a node makes in the end, with what is inside it

    def counted(self, batch: int) -> Counted:
        nodes = [one for one in self._view.nodes if not self._view.is_foldable(one)]
        for node in nodes:
            self._take_in(node)
        for node in nodes:
            if id(node) not in self._inside and self._runs_int8(node):
                self._int8.add(id(node))
        for node in nodes:
            if self._serves(node):
                self._inside.add(id(node))
        operators: list[Operator] = []
        lost: Counter[str] = Counter()
        guessed: Counter[str] = Counter()
        for node in nodes:
            if id(node) in self._inside or self._is_free(node):
                continue
            found = self._operator(node, guessed) if self._is_told(node) else None
            if found is None:
                lost[node.op_type] += 1
            else:
                operators.append(found)
        if not operators:
            raise ModelFileError("The model has no operator whose shapes can be told: there is nothing to estimate.")
        return Counted(tuple(operators), batch, tuple(_notes(lost, guessed)))

    def _take_in(self, node: onnx.NodeProto) -> None:
        """Follow what a kernel computes along: a bias, a normalisation, a ReLU."""
        if id(node) in self._inside:
            return
        last = node.output[0] if node.output else ""
        can = node.op_type
        while can in _TAKES_ACTIVATION and last not in self._view.graph_outputs:
            users = self._view.consumers(last)
            if len(users) != 1 or not self._fuses(can, users[0]):
                break
            self._inside.add(id(users[0]))
            if users[0].op_type in ABSORBED:
                self._clamped.add(id(node))
            can, last = ("", users[0].output[0]) if users[0].op_type in ABSORBED else (can, users[0].output[0])
        self._made[id(node)] = last

    def _fuses(self, op: str, user: onnx.NodeProto) -> bool:
        if user.op_type in ABSORBED:
            return True
        if user.op_type == "BatchNormalization":
            return op in ("Conv", "ConvTranspose")
        return user.op_type == "Add" and op == "MatMul" and any(self._view.is_constant(name) for name in user.input)

    def _runs_int8(self, node: onnx.NodeProto) -> bool:
        """Whether the runtime has an 8-bit kernel for a node as it stands in this graph."""
        data = [name for name in self._view.data_inputs(node) if name]
        if node.op_type in (_QUANTIZE, _DEQUANTIZE) or not data:
            return False
        if node.op_type.startswith("QLinear") or all(self._types.get(name) in _EIGHT_BITS for name in data):
            return True
        if node.op_type not in WEIGHTED | ELEMENTWISE | MOVES:
            return False
        weighted = [node.input[1]] if node.op_type in WEIGHTED else []
        if not all(self._is_coded(name) for name in (*data, *weighted)):
            return False
        return self._becomes_codes(node) or node.op_type in FLOAT_RESULT | CARRIED

    def _is_coded(self, tensor: str) -> bool:
        """Whether a float tensor is there as 8-bit codes, too: a DQ makes it, perhaps before a move without bytes."""
        node = self._view.producer(tensor)
        while node is not None and node.op_type in _FREE:
            node = self._view.producer(node.input[0])
        return node is not None and node.op_type == _DEQUANTIZE and self._types.get(node.input[0]) in _EIGHT_BITS

    def _becomes_codes(self, node: onnx.NodeProto) -> bool:
        """Whether all that a node makes is quantized and nothing else reads it."""
        names = [self._made.get(id(node), node.output[0]), *[name for name in node.output[1:] if name]]
        for name in names:
            users = self._view.consumers(name)
            if name in self._view.graph_outputs or not users or any(one.op_type != _QUANTIZE for one in users):
                return False
            # codes below that of 0 would be lost values: the runtime then leaves the ReLU, and what it is on, in float
            if id(node) in self._clamped and not all(self._begins_at_zero(one) for one in users):
                return False
        return True

    def _begins_at_zero(self, quantizer: onnx.NodeProto) -> bool:
        grid = self._view.qparams(quantizer)
        return grid is not None and bool((grid.zero_point == grid.lowest_code).all())

    def _serves(self, node: onnx.NodeProto) -> bool:
        """Whether a conversion is part of the 8-bit kernels before or behind it."""
        if node.op_type == _QUANTIZE:
            before = self._maker(node.input[0])
            return before is not None and id(before) in self._int8
        if node.op_type == _DEQUANTIZE:
            users = self._behind(node.output[0])
            return bool(users) and all(id(one) in self._int8 for one in users)
        return False

    def _maker(self, tensor: str) -> onnx.NodeProto | None:
        """The node whose kernel makes a tensor, with what is inside it."""
        node = self._view.producer(tensor)
        while node is not None and (id(node) in self._inside or node.op_type in _FREE):
            before = [one for name in node.input if (one := self._view.producer(name)) is not None]
            node = before[0] if before else None
        return node

    def _behind(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor, through those that move no bytes."""
        found = []
        for one in self._view.consumers(tensor):
            found += self._behind(one.output[0]) if one.op_type in _FREE else [one]
        return found

    def _is_free(self, node: onnx.NodeProto) -> bool:
        if node.op_type in _FREE | _NOT_COUNTED:
            return True
        made = [self._types.get(name, "") for name in node.output if name]
        small = sum(prod(self._shapes.get(name, ())) for name in node.output if name) <= _SHAPE_ELEMENTS
        return small and bool(made) and all(one in ("int64", "int32", "bool") for one in made)

    def _is_told(self, node: onnx.NodeProto) -> bool:
        if node.op_type in CONTROL:
            return False
        return all(name in self._shapes for name in (*node.input, *node.output) if name)

    def _operator(self, node: onnx.NodeProto, guessed: Counter[str]) -> Operator | None:
        shapes = [self._shapes[name] if name else None for name in node.input]
        outputs = [self._shapes[name] for name in node.output if name]
        try:
            cost = cost_of(node, shapes, outputs)
        except (IndexError, TypeError, ValueError):  # fewer dimensions than such an operator has: a file nobody can run
            return None
        if not cost.known:
            guessed[node.op_type] += 1
        int8 = id(node) in self._int8
        element_type: ElementType = "int8" if int8 else self._float_type(node)
        stored = [name for name in dict.fromkeys(node.input) if name and self._view.is_constant(name)]
        data = [name for name in node.input if name and name not in stored]
        made = [name for name in (self._made.get(id(node), node.output[0]), *node.output[1:]) if name]
        weights = self._weights(node, stored, cost.kind)
        reads = sum(prod(self._shapes[name]) for name in data)
        writes = sum(prod(self._shapes[name]) for name in made)
        wide = int8 and not self._becomes_codes(node) and node.op_type in FLOAT_RESULT
        read_bytes = sum(prod(self._shapes[name]) * self._size(name, int8) for name in data)
        write_bytes = sum(prod(self._shapes[name]) * self._size(name, int8 and not wide) for name in made)
        if not cost.reads_all and reads > writes:
            read_bytes, reads = read_bytes * writes // max(reads, 1), writes
        size = 1 if int8 else _SIZES.get(element_type, 4)
        return Operator(
            node.name or made[0], node.op_type, cost.kind, element_type, cost.macs, cost.work,
            weights, reads, writes, weights * size, read_bytes, write_bytes,
        )  # fmt: skip

    def _weights(self, node: onnx.NodeProto, stored: list[str], kind: str) -> int:
        """Stored elements that are read; scales, zero-points and shapes of other operators are not worth counting."""
        if (places := weight_positions(node.op_type)) is not None:
            named = node.input[places[1]]
            return prod(self._shapes[named]) if named in stored else 0
        if kind in ("gemm", "elementwise") and node.op_type not in (_QUANTIZE, _DEQUANTIZE):
            return sum(prod(self._shapes[name]) for name in stored)
        return 0

    def _size(self, tensor: str, int8: bool) -> int:
        if int8 and self._types.get(tensor) in ("float32", "float16"):
            return 1  # codes, read before their DQ and written behind their Q
        return _SIZES.get(self._types.get(tensor, ""), 4)

    def _float_type(self, node: onnx.NodeProto) -> ElementType:
        types = {self._types.get(name, "") for name in (*node.input, *node.output) if name}
        return "float16" if types & {"float16", "bfloat16"} and "float32" not in types else "float32"


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """The shape of every tensor that has one without a dynamic dimension."""
    found: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if value.name in found or not tensor.HasField("shape"):
            continue
        if all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return found


def _notes(lost: Counter[str], guessed: Counter[str]) -> list[str]:
    notes = []
    if lost:
        names = ", ".join(f"{count} {op}" for op, count in sorted(lost.items()))
        notes.append(f"Not counted, because their shapes or bodies cannot be told: {names}.")
    if guessed:
        names = ", ".join(f"{count} {op}" for op, count in sorted(guessed.items()))
        notes.append(f"Counted as a few operations on each element, because nothing is known of them: {names}.")
    return notes
