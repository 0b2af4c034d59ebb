"""What one operator of an ONNX graph costs: its kind, its multiply-accumulates, its operations on elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx

from edgekd._roofline import Kind

__all__ = ["Cost", "Shape", "cost_of", "weight_positions"]

Shape = tuple[int, ...]

_COSTLY = 8
"""Operations that one element of a function such as exp counts as: what a vector polynomial takes."""

_WEIGHT_AT = {
    "QLinearConv": (0, 3), "QLinearMatMul": (0, 3), "QGemm": (0, 3), "Conv": (0, 1), "ConvTranspose": (0, 1),
    "ConvInteger": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1), "MatMulInteger": (0, 1), "FusedConv": (0, 1),
    "MatMulIntegerToFloat": (0, 1), "DynamicQuantizeMatMul": (0, 1), "FusedMatMul": (0, 1),
}  # fmt: skip
_CONVOLUTIONS = frozenset({"Conv", "ConvInteger", "QLinearConv", "FusedConv"})
_PRODUCTS = frozenset(_WEIGHT_AT) - _CONVOLUTIONS - {"ConvTranspose"}
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_WINDOWS = frozenset({"MaxPool", "AveragePool", "LpPool", "QLinearAveragePool"})
_WHOLE = frozenset(
    {
        "GlobalAveragePool", "GlobalMaxPool", "QLinearGlobalAveragePool", "ReduceMean", "ReduceSum", "ReduceMax",
        "ReduceMin", "ReduceL2", "ReduceSumSquare", "ArgMax", "ArgMin",
    }
)  # fmt: skip
_MOVING = frozenset(
    {
        "Transpose", "Concat", "QLinearConcat", "Slice", "Split", "Gather", "GatherElements", "GatherND", "Pad",
        "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "ScatterND", "ScatterElements",
    }
)  # fmt: skip
_CHEAP = {
    "Add": 1, "Sub": 1, "Mul": 1, "QLinearAdd": 2, "QLinearMul": 2, "Relu": 1, "Clip": 2, "LeakyRelu": 2, "PRelu": 2,
    "QLinearLeakyRelu": 2, "Neg": 1, "Abs": 1, "Max": 1, "Min": 1, "Where": 1, "Cast": 1, "Sum": 1, "Div": 4, "Sqrt": 4,
    "Reciprocal": 4, "Floor": 1, "Ceil": 1, "Round": 1, "Sign": 1, "And": 1, "Or": 1, "Not": 1, "Equal": 1,
    "Greater": 1, "Less": 1, "GreaterOrEqual": 1, "LessOrEqual": 1, "BatchNormalization": 2, "HardSigmoid": 3,
    "HardSwish": 4, "Resize": 4, "Upsample": 4, "QuantizeLinear": 3, "DequantizeLinear": 2,
    "DynamicQuantizeLinear": 5, "QLinearSigmoid": 1, "TopK": 4, "CumSum": 1, "Trilu": 1,
}  # fmt: skip
_FUNCTIONS = frozenset(
    {
        "Sigmoid", "Tanh", "Exp", "Log", "Erf", "Gelu", "Softmax", "LogSoftmax", "Softplus", "Softsign", "Mish", "Elu",
        "Selu", "Celu", "Pow", "Sin", "Cos", "Swish", "QuickGelu", "FastGelu", "BiasGelu", "QLinearSoftmax",
        "LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "RMSNormalization",
        "InstanceNormalization", "GroupNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What an operator costs.

    Args:
        kind: what kernels it takes.
        macs: multiply-accumulates.
        work: operations that its kind's peak is divided by.
        reads_all: it reads all of its inputs; else only as much as it writes, as a slice does.
        known: its formula is known; else it is counted as a few operations on each element.
    """

    kind: Kind
    macs: int
    work: int
    reads_all: bool = True
    known: bool = True


def weight_positions(op_type: str) -> tuple[int, int] | None:
    """Where an operator has its data and its weights among its inputs; None for one without weights."""
    return _WEIGHT_AT.get(op_type)


def cost_of(node: onnx.NodeProto, inputs: Sequence[Shape | None], outputs: Sequence[Shape]) -> Cost:
    """The cost of one node.

    Args:
        node: the operator.
        inputs: shape of each input; None for one that is left out.
        outputs: shape of each output, the first is what it computes.
    """
    op, out = node.op_type, outputs[0]
    if op in _CONVOLUTIONS:
        return _convolution(inputs[_WEIGHT_AT[op][1]] or (), out, int(_integer(node, "group", 1)))
    if op == "ConvTranspose":
        weight = inputs[1] or ()
        return _product(prod(inputs[0] or ()) * prod(weight[1:]), "conv")
    if op in _PRODUCTS:
        data = inputs[0] or ()
        inner = data[0] if _integer(node, "transA", 0) else data[-1]
        return _product(prod(out) * inner, "gemm")
    if op in _RECURRENT:
        steps = prod((inputs[0] or ())[:2])
        return _product(steps * (prod(inputs[1] or ()) + prod(inputs[2] or ())), "gemm")
    if op in ("Attention", "MultiHeadAttention"):
        return _product((prod(inputs[0] or ()) + prod(out)) * (inputs[1] or (1, 1))[-2], "gemm")
    if op == "Einsum":
        return _product(_einsum(_text(node, "equation"), [one or () for one in inputs]), "gemm")
    return _by_element(node, inputs, outputs)


def _convolution(weight: Shape, out: Shape, group: int) -> Cost:
    kind: Kind = "depthwise" if group > 1 and weight[1] == 1 else "conv"
    return _product(prod(out) * prod(weight[1:]), kind)


def _product(macs: int, kind: Kind) -> Cost:
    return Cost(kind, macs, macs)


def _by_element(node: onnx.NodeProto, inputs: Sequence[Shape | None], outputs: Sequence[Shape]) -> Cost:
    op = node.op_type
    written, read = sum(prod(one) for one in outputs), prod(inputs[0] or ()) if inputs else 0
    if op in _WINDOWS:
        return Cost("pool", 0, prod(outputs[0]) * prod(_integers(node, "kernel_shape")))
    if op in _WHOLE:
        return Cost("pool", 0, read)
    if op in _MOVING:
        return Cost("move", 0, written, reads_all=op == "Concat")
    if op in _FUNCTIONS:
        return Cost("elementwise", 0, written * _COSTLY)
    return Cost("elementwise", 0, written * _CHEAP.get(op, 4), known=op in _CHEAP)


def _einsum(equation: str, inputs: Sequence[Shape]) -> int:
    """Multiply-accumulates of a sum of products: one for each combination of all indices."""
    sizes: dict[str, int] = {}
    for letters, shape in zip(equation.replace(" ", "").split("->")[0].split(","), inputs, strict=False):
        if "." not in letters and len(letters) == len(shape):
            sizes |= dict(zip(letters, shape, strict=True))
    return prod(sizes.values())


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def _integers(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(one.ints) for one in node.attribute if one.name == name), [])


def _text(node: onnx.NodeProto, name: str) -> str:
    return next((one.s.decode() for one in node.attribute if one.name == name), "")
