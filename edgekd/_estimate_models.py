"""The models of a probe, made on the spot: each of one kind of operator, and two small networks that hold all kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd._roofline import ElementType

__all__ = ["Codes", "ProbeModel", "check_networks", "probe_models"]

Codes = Literal["int8", "uint8"]
_SCALE = 0.02
_WEIGHT_SCALE = 0.01


@dataclass(frozen=True)
class ProbeModel:
    """A model to time.

    Args:
        name: unique among the probes.
        element_type: that its operators compute in.
        model: the model, one input "x" and one output.
        feeds: its input.
    """

    name: str
    element_type: ElementType
    model: onnx.ModelProto
    feeds: Mapping[str, np.ndarray]


@dataclass
class _Builder:
    """A graph under construction; with `codes`, a Q/DQ pair stands behind every operator."""

    seed: int
    codes: Codes | None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        if self.codes is not None:
            zero, lowest = (0, -128) if self.codes == "int8" else (128, 0)
            self._store("scale", np.array(_SCALE, np.float32))
            self._store("zero", np.array(zero, self.codes))
            # behind a ReLU: codes that begin at 0, else the runtime does not take it into the int8 operator
            self._store("zero_of_relu", np.array(lowest, self.codes))
            self._store("weight_scale", np.array(_WEIGHT_SCALE, np.float32))
            self._store("weight_zero", np.array(0, np.int8))

    def add(
        self, op: str, inputs: Sequence[str], attributes: Mapping[str, Any] | None = None, *, coded: bool = True
    ) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"node_{name}", **(attributes or {})))
        return self.quantized(name) if coded else name

    def quantized(self, tensor: str) -> str:
        """A Q/DQ pair behind a tensor, in an int8 model."""
        if self.codes is None:
            return tensor
        q, dq = f"{tensor}_q", f"{tensor}_dq"
        zero = "zero_of_relu" if tensor.startswith("relu") else "zero"
        self.nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", zero], [q], name=f"node_{q}"))
        self.nodes.append(helper.make_node("DequantizeLinear", [q, "scale", zero], [dq], name=f"node_{dq}"))
        return dq

    def weight(self, *shape: int) -> str:
        name = f"weight_{len(self.stored)}"
        if self.codes is None:
            values = self.rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
            return self._store(name, values)
        # small codes: sums of pairs saturate on no processor
        self._store(name, self.rng.integers(-32, 32, shape).astype(np.int8))
        out = f"{name}_dq"
        inputs = [name, "weight_scale", "weight_zero"]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [out], name=f"node_{out}"))
        return out

    def conv(
        self, x: str, inputs: int, outputs: int, size: int, *, stride: int = 1, group: int = 1, relu: bool = True
    ) -> str:
        pads = [size // 2] * 4
        weight = self.weight(outputs, inputs // group, size, size)
        shape = {"kernel_shape": [size, size], "pads": pads, "strides": [stride] * 2, "group": group}
        y = self.add("Conv", [x, weight], shape, coded=not relu)
        return self.add("Relu", [y]) if relu else y

    def finished(self, name: str, shape: Sequence[int], last: str) -> ProbeModel:
        """The model, whose input is `x`."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
        y = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, name, [x], [y], self.stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model)
        model.graph.output[0].CopyFrom(inferred.graph.output[0])
        feeds = {"x": np.random.default_rng(self.seed).standard_normal(shape).astype(np.float32)}
        return ProbeModel(name, "float32" if self.codes is None else "int8", model, feeds)

    def _store(self, name: str, values: np.ndarray) -> str:
        self.stored.append(numpy_helper.from_array(values, name))
        return name


def probe_models(codes: Codes, seed: int) -> list[ProbeModel]:
    """The models that a profile is fitted to.

    Args:
        codes: element type of activations that the device's runtime is fastest with.
        seed: of weights and inputs.
    """
    found = [_tiny("call", 1, seed), _tiny("overhead", 64, seed)]
    found += [_weights(size, seed) for size in (362, 724, 1448, 2896)]
    for kind in (None, codes):
        found += [
            _convolutions("conv", kind, seed, channels=64, size=28, kernel=3, repeats=1),
            _convolutions("conv_deep", kind, seed, channels=256, size=7, kernel=3, repeats=1),
            _convolutions("pointwise", kind, seed, channels=128, size=28, kernel=1, repeats=3),
            _convolutions("pointwise_deep", kind, seed, channels=384, size=7, kernel=1, repeats=6),
            _convolutions("depthwise", kind, seed, channels=96, size=56, kernel=3, repeats=4, group=96),
            _convolutions("depthwise_deep", kind, seed, channels=480, size=14, kernel=3, repeats=8, group=480),
            _product(kind, seed),
            _sums("sums", kind, seed, channels=32, size=56),
            _sums("sums_large", kind, seed, channels=128, size=112),
            _windows(kind, seed),
        ]
    return [*found, _moves(seed)]


def check_networks(codes: Codes, seed: int) -> list[ProbeModel]:
    """Two small networks in float32 and int8 that no profile is fitted to."""
    return [make(kind, seed) for make in (_mobile, _residual) for kind in (None, codes)]


def _suffix(codes: Codes | None) -> str:
    return "float32" if codes is None else "int8"


def _tiny(name: str, repeats: int, seed: int) -> ProbeModel:
    graph, last = _Builder(seed, None), "x"
    for _ in range(repeats):
        last = graph.add("Sigmoid", [last])
    return graph.finished(name, (1, 8), last)


def _weights(size: int, seed: int) -> ProbeModel:
    graph = _Builder(seed, None)
    return graph.finished(f"weights_{size}", (1, size), graph.add("MatMul", ["x", graph.weight(size, size)]))


def _convolutions(
    name: str, codes: Codes | None, seed: int, *, channels: int, size: int, kernel: int, repeats: int, group: int = 1
) -> ProbeModel:
    graph = _Builder(seed, codes)
    # runtimes convert and reorder what enters and leaves their kernels: little enters here, and next to nothing leaves
    last = graph.conv(graph.quantized("x"), 3, channels, 1)
    for _ in range(repeats):
        last = graph.conv(last, channels, channels, kernel, group=group)
    return graph.finished(f"{name}_{_suffix(codes)}", (1, 3, size, size), graph.add("GlobalAveragePool", [last]))


def _product(codes: Codes | None, seed: int) -> ProbeModel:
    graph = _Builder(seed, codes)
    last = graph.quantized("x")
    for _ in range(1):
        last = graph.add("MatMul", [last, graph.weight(512, 512)])
    return graph.finished(f"product_{_suffix(codes)}", (64, 512), last)


def _sums(name: str, codes: Codes | None, seed: int, *, channels: int, size: int) -> ProbeModel:
    graph = _Builder(seed, codes)
    first = last = graph.quantized("x")
    for _ in range(6):
        last = graph.add("Add", [last, first])
    return graph.finished(f"{name}_{_suffix(codes)}", (1, channels, size, size), last)


def _windows(codes: Codes | None, seed: int) -> ProbeModel:
    graph = _Builder(seed, codes)
    last = graph.conv(graph.quantized("x"), 3, 64, 1)
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    for _ in range(4):
        last = graph.add("AveragePool", [last], window)
    return graph.finished(f"windows_{_suffix(codes)}", (1, 3, 28, 28), graph.add("GlobalAveragePool", [last]))


def _moves(seed: int) -> ProbeModel:
    graph, last = _Builder(seed, None), "x"
    for step in range(4):
        last = graph.add("Concat", [last, last], {"axis": 1 + step % 3})
    return graph.finished("moves_float32", (1, 16, 28, 28), last)


def _mobile(codes: Codes | None, seed: int) -> ProbeModel:
    """Inverted residuals: pointwise, depthwise, pointwise, sum."""
    graph = _Builder(seed, codes)
    last = graph.conv(graph.quantized("x"), 3, 16, 3, stride=2)
    width = 16
    for outputs, stride in ((24, 2), (24, 1), (40, 2), (40, 1), (80, 2), (80, 1), (112, 1), (112, 1)):
        before, inner = last, 6 * width
        last = graph.conv(last, width, inner, 1)
        last = graph.conv(last, inner, inner, 3, stride=stride, group=inner)
        last = graph.conv(last, inner, outputs, 1, relu=False)
        last = graph.add("Add", [last, before]) if stride == 1 and outputs == width else last
        width = outputs
    return _classified(graph, "mobile", codes, last, width, 160)


def _residual(codes: Codes | None, seed: int) -> ProbeModel:
    """Pairs of dense convolutions with a sum around them."""
    graph = _Builder(seed, codes)
    last = graph.conv(graph.quantized("x"), 3, 32, 3, stride=2)
    width = 32
    for outputs, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        around = last if stride == 1 else graph.conv(last, width, outputs, 1, stride=stride, relu=False)
        last = graph.conv(last, width, outputs, 3, stride=stride)
        last = graph.conv(last, outputs, outputs, 3, relu=False)
        last = graph.add("Relu", [graph.add("Add", [last, around], coded=False)])
        width = outputs
    return _classified(graph, "residual", codes, last, width, 96)


def _classified(graph: _Builder, name: str, codes: Codes | None, last: str, width: int, size: int) -> ProbeModel:
    pooled = graph.add("GlobalAveragePool", [last])
    flat = graph.add("Flatten", [pooled], coded=False)
    logits = graph.add("MatMul", [graph.quantized(flat), graph.weight(width, 1000)])
    return graph.finished(f"{name}_{_suffix(codes)}", (1, 3, size, size), logits)
