"""Which operators ONNX Runtime's CPU provider can run on 8-bit codes, found by trying each in version 1.31.1.

A test tries them again, so a newer runtime that gains or loses a kernel fails there.
"""

from __future__ import annotations

import onnx

__all__ = [
    "ABSORBED",
    "BOUNDARIES",
    "CARRIED",
    "CONTROL",
    "ELEMENTWISE",
    "FLOAT_RESULT",
    "MOVES",
    "REORDERS",
    "STRUCTURE",
    "WEIGHTED",
    "float_reason",
    "is_int8_operator",
]

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})

ELEMENTWISE = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "Softmax", "LeakyRelu", "Where"}
)
"""Operators with an int8 kernel of their own that needs a Q on every input and on the output."""

FLOAT_RESULT = frozenset({"Gemm", "MatMul"})
"""Operators that also have an int8 kernel with a float result."""

MOVES = frozenset(
    {
        "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand",
        "Tile", "Resize", "DepthToSpace", "ReduceMax", "ReduceMin",
    }
)  # fmt: skip
"""Operators that only move or pick values, so that 8-bit codes go through them unchanged."""

CARRIED = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"})
"""Moves that the runtime carries a DQ or Q across, so that the pair behind them may be missing."""

ABSORBED = frozenset({"Relu", "Clip"})
"""Activations that disappear into the Q behind them."""

BOUNDARIES = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Conversions between float and codes; they do not compute."""

REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
"""Conversions between the plain and the blocked layout of float convolutions."""

CONTROL = frozenset({"If", "Loop", "Scan"})

STRUCTURE = frozenset({"Constant", "ConstantOfShape", "Identity", "Dropout", "Shape", "Size", "Cast", "Range"})
"""Operators that carry or make a value without computing on an activation."""

_INT8_NAMES = frozenset(
    {
        "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
        "QAttention", "QEmbedLayerNormalization", "QGemm",
    }
)  # fmt: skip
_CLASSES = {
    "an activation function without an int8 kernel": (
        "HardSwish", "HardSigmoid", "Swish", "QuickGelu", "Gelu", "FastGelu", "BiasGelu", "Erf", "Tanh", "Elu", "Selu",
        "Celu", "Mish", "Softplus", "Softsign", "PRelu", "ThresholdedRelu", "Relu", "Clip", "LogSoftmax",
    ),
    "a normalisation; there is no int8 kernel": (
        "LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "RMSNormalization",
        "InstanceNormalization", "GroupNormalization", "BatchNormalization", "LpNormalization", "LRN",
        "MeanVarianceNormalization",
    ),
    "a recurrent layer; int8 only when quantized dynamically": ("LSTM", "GRU", "RNN"),
    "attention as one operator; there is no int8 kernel for this form": ("Attention", "MultiHeadAttention"),
}  # fmt: skip
_REASONS = {op: reason for reason, ops in _CLASSES.items() for op in ops}


def is_int8_operator(node: onnx.NodeProto) -> bool:
    """Whether an operator's name says that it converts to or computes on 8-bit codes."""
    return node.op_type in BOUNDARIES or node.op_type in _INT8_NAMES or node.op_type.startswith("QLinear")


def float_reason(op_type: str) -> str:
    """Why an operator that the audit does not ask to be int8 is float."""
    if op_type in ("Softmax", "MatMul", "FusedMatMul"):
        return "attention: 256 codes are few for probabilities; Q/DQ pairs on all its inputs would make it int8"
    if op_type in MOVES:
        return "moves float values between float operators"
    if op_type in ELEMENTWISE or op_type in ("ReduceMean", "Sum"):
        return "lies among float operators: as int8 it would need conversions around it"
    if ":" in op_type:
        return "of another domain: nothing is known of its kernels"
    return _REASONS.get(op_type, "there is no int8 kernel for it")
