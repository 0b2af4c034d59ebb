"""Random Q/DQ graphs, right and wrong placements mixed: what the audit's rules are held against the runtime with."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from ort_graphs import C, H, QdqGraph

Shape = tuple[int, ...]

_SCALES = (0.02, 0.05, 6 / 255)
_WEIGHT_SCALE = 0.01


class _Builder:
    """One graph; `live` has the tensors that an operator may take, with their shapes less the batch."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.signed = self.dice.random() < 0.4
        self.graph = QdqGraph(opset=self.dice.choice([13, 17, 20]))
        self.live: list[tuple[str, Shape]] = [("x", (C, H, H))]
        self._count = 0

    def name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def chance(self, probability: float) -> bool:
        return self.dice.random() < probability

    def pair(self, name: str, probability: float = 0.8) -> str:
        """The tensor behind a pair, mostly; of the usual type with the usual zero-point, mostly."""
        if any(f"{name}_q" in node.output for node in self.graph.nodes):
            return f"{name}_dq"
        if not self.chance(probability):
            return name
        dtype = "int8" if self.signed != self.chance(0.05) else "uint8"
        lowest, middle = (-128, 0) if dtype == "int8" else (0, 128)
        zero = lowest if self.chance(0.6) else middle
        return self.graph.pair(name, scale=self.dice.choice(_SCALES), zero=zero, dtype=dtype)

    def ints(self, *values: int) -> str:
        return self.graph.constant(self.name("i"), np.array(values, np.int64))

    def bias(self, source: str, features: int) -> str:
        """int32 on the right grid, mostly; float sometimes."""
        if not self.chance(0.7):
            return self.graph.real(self.name("b"), (features,))
        scales = {one.name: one for one in self.graph.initializers}
        stored = scales.get(f"{source}_scale")
        scale = float(onnx.numpy_helper.to_array(stored)) if stored is not None else 0.05
        right = scale * _WEIGHT_SCALE if self.chance(0.92) else 0.0007
        return self.graph.stored(self.name("b"), (features,), dtype="int32", scale=right)

    def same_shape(self, shape: Shape) -> str:
        return self.dice.choice([name for name, other in self.live if other == shape])

    def add(self, kind: Callable[[_Builder, str, Shape, str], Shape | None]) -> None:
        source, shape = self.dice.choice(self.live[-3:])
        output = self.name("t")
        made = kind(self, source, shape, output)
        if made is None:
            return
        if kind in (_convolution, _binary) and self.chance(0.5):
            output = self.graph.op("Relu", [output], self.name("t"))
        self.live.append((output, made))
        if self.chance(0.75):
            self.pair(output, 1.0)


def _convolution(build: _Builder, source: str, shape: Shape, output: str) -> Shape | None:
    if len(shape) != 3:
        return None
    graph, name, kernel = build.graph, build.name("w"), (C, shape[0], 3, 3)
    weight = graph.stored(name, kernel) if build.chance(0.92) else graph.real(name, kernel)
    inputs = [build.pair(source), weight, *([build.bias(source, C)] if build.chance(0.8) else [])]
    graph.op("Conv", inputs, output, pads=[1, 1, 1, 1])
    return (C, *shape[1:])


def _binary(build: _Builder, source: str, shape: Shape, output: str) -> Shape:
    other = build.same_shape(shape) if build.chance(0.8) else build.graph.real(build.name("k"), (1,))
    build.graph.op(build.dice.choice(["Add", "Mul"]), [build.pair(source), build.pair(other)], output)
    return shape


def _unary(build: _Builder, source: str, shape: Shape, output: str) -> Shape:
    op = build.dice.choice(["Sigmoid", "LeakyRelu", "HardSigmoid", "Relu", "Clip", "Softmax"])
    attributes: dict[str, Any] = {"axis": 1} if op == "Softmax" else {}
    inputs = [source if op in ("Relu", "Clip") else build.pair(source)]
    if op == "Clip":
        inputs += [build.graph.constant(build.name("limit"), np.float32(value)) for value in (0, 6)]
    build.graph.op(op, inputs, output, **attributes)
    return shape


def _pool(build: _Builder, source: str, shape: Shape, output: str) -> Shape | None:
    if len(shape) != 3:
        return None
    if build.chance(0.4):
        build.graph.op("GlobalAveragePool", [build.pair(source)], output)
        return (shape[0], 1, 1)
    if min(shape[1:]) < 2:
        return None
    build.graph.op(build.dice.choice(["AveragePool", "MaxPool"]), [build.pair(source)], output, kernel_shape=[2, 2])
    return (shape[0], shape[1] - 1, shape[2] - 1)


def _move(build: _Builder, source: str, shape: Shape, output: str) -> Shape | None:
    taken = build.pair(source, 0.5)
    if len(shape) != 3 or build.chance(0.3):
        build.graph.op("Reshape", [taken, build.ints(0, -1)], output)
        return (int(np.prod(shape)),)
    if build.chance(0.5) or shape[0] < 3:
        build.graph.op("Transpose", [taken], output, perm=[0, 1, 3, 2])
        return (shape[0], shape[2], shape[1])
    build.graph.op("Slice", [taken, build.ints(0), build.ints(2), build.ints(1)], output)
    return (2, *shape[1:])


def _concat(build: _Builder, source: str, shape: Shape, output: str) -> Shape:
    build.graph.op("Concat", [build.pair(source), build.pair(build.same_shape(shape))], output, axis=1)
    return (2 * shape[0], *shape[1:])


def _product(build: _Builder, source: str, shape: Shape, output: str) -> Shape | None:
    if len(shape) != 1:
        return None
    if build.chance(0.5):
        weight = build.graph.pair(build.graph.real(build.name("w"), (shape[0], 4)), dtype="int8")
        build.graph.op("MatMul", [build.pair(source), weight], output)
    else:
        inputs = [build.pair(source), build.graph.stored(build.name("w"), (4, shape[0]))]
        build.graph.op("Gemm", [*inputs, *([build.bias(source, 4)] if build.chance(0.8) else [])], output, transB=1)
    return (4,)


_KINDS = (_convolution, _convolution, _binary, _binary, _unary, _unary, _pool, _move, _concat, _product)


def random_graph(seed: int) -> onnx.ModelProto:
    """A valid model of three to nine operators; the same for the same seed."""
    build = _Builder(seed)
    for _ in range(build.dice.randint(3, 9)):
        build.add(build.dice.choice(_KINDS))
    nodes = build.graph.nodes
    taken = {name for node in nodes for name in node.input}
    results = [name for node in nodes for name in node.output if name not in taken and not name.endswith("_q")]
    return build.graph.model(*results, shape=(2, C, H, H))
