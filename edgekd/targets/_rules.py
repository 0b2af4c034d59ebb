"""The rule table: every operator that some target can run as int8, under its name in torch and in ONNX.

One table serves both ways to an int8 file: the quantizer of an exported torch graph reads the aten names, the
quantizer of a user's ONNX file the ONNX names, and the audit counts what a file could have had. What a target takes
of the table, and on which grid, stands in its `Numerics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["BY_ATEN", "BY_ONNX", "OPERATORS", "USUAL", "Operator", "Role"]

Role = Literal["weighted", "product", "binary", "pool", "concat", "function", "move", "clamp"]
"""How an operator is quantized.

    weighted  data and a constant weight on 8-bit grids; a Q on the result
    product   two activations, a Q on the result
    binary    two activations or an activation and a constant; a Q on the result
    pool      one activation in, a Q on the result
    concat    many activations in, a Q on the result
    function  one activation in, a Q on the result, computed through a table of 256 entries
    move      codes go through unchanged: the result has the parameters of the input
    clamp     joins the operator before it: no Q between the two
"""


@dataclass(frozen=True)
class Operator:
    """One kind of operator.

    Args:
        name: what `Numerics.operators` calls it.
        role: how it is quantized.
        aten: overloads in an exported torch graph, `conv2d.default`.
        onnx: operator types in an ONNX graph.
        float_result: whether int8 kernels exist that give their result in float, so that the Q behind may be left out.
    """

    name: str
    role: Role
    aten: tuple[str, ...]
    onnx: tuple[str, ...]
    float_result: bool = False


OPERATORS: Mapping[str, Operator] = {
    one.name: one
    for one in (
        Operator("convolution", "weighted", ("conv1d.default", "conv2d.default"), ("Conv",)),
        Operator("linear", "weighted", ("linear.default",), ("Gemm", "MatMul"), float_result=True),
        # in ONNX a MatMul of two activations; with a constant it is a linear layer
        Operator("matmul", "product", ("matmul.default", "bmm.default"), ("MatMul",), float_result=True),
        Operator("add", "binary", ("add.Tensor",), ("Add",)),
        Operator("mul", "binary", ("mul.Tensor",), ("Mul",)),
        Operator("average_pool", "pool", ("avg_pool2d.default",), ("AveragePool",)),
        Operator("global_average_pool", "pool", ("adaptive_avg_pool2d.default",), ("GlobalAveragePool",)),
        Operator("concat", "concat", ("cat.default",), ("Concat",)),
        Operator("sigmoid", "function", ("sigmoid.default",), ("Sigmoid",)),
        Operator("leaky_relu", "function", ("leaky_relu.default",), ("LeakyRelu",)),
        Operator("softmax", "function", ("softmax.int", "_softmax.default"), ("Softmax",)),
        Operator("max_pool", "move", ("max_pool2d.default",), ("MaxPool",)),
        Operator("reshape", "move", ("flatten.using_ints", "view.default", "reshape.default"), ("Reshape", "Flatten")),
        Operator("transpose", "move", ("permute.default", "transpose.int"), ("Transpose",)),
        Operator(
            "squeeze",
            "move",
            ("squeeze.dim", "squeeze.dims", "unsqueeze.default"),
            ("Squeeze", "Unsqueeze"),
        ),
        # by zeros only; a convolution behind it takes it over
        Operator("pad", "move", ("constant_pad_nd.default",), ("Pad",)),
        Operator("slice", "move", ("slice.Tensor", "select.int"), ("Slice",)),
        Operator("clamp", "clamp", ("relu.default", "hardtanh.default"), ("Relu", "Clip")),
    )
}

BY_ATEN: Mapping[str, Operator] = {name: one for one in OPERATORS.values() for name in one.aten}

BY_ONNX: Mapping[str, Operator] = {
    # a MatMul is a linear layer until its second input turns out to be computed
    name: one
    for one in reversed(list(OPERATORS.values()))
    for name in one.onnx
}

USUAL = frozenset(OPERATORS) - {"matmul", "sigmoid", "leaky_relu", "softmax", "clamp"}
"""What a target takes unless it says otherwise.

Activation functions and attention lose accuracy on 256 codes (a softmax over 200 tokens gives values around one step
of the grid), and have little to gain.
"""
