"""Weights whose products with 8-bit activations do not fit the 16-bit sums of x86 processors without VNNI.

See `edgekd.calibration._pair_sums` for what is summed there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from edgekd.calibration._pair_sums import largest_pair
from edgekd.targets._graphview import GraphView
from edgekd.targets._kernels import WEIGHTED

__all__ = ["Saturable", "saturable_weights", "with_exact_sums"]

_HIGHEST_ACTIVATION = 255
_SUMS = np.iinfo(np.int16)


@dataclass(frozen=True)
class Saturable:
    """A weight of which two products may not fit 16 bits.

    Args:
        name: of the operator.
        largest_code: magnitude of its largest weight code; up to 64 fits always.
        share: of its output channels that have such a pair, in (0, 1].
    """

    name: str
    largest_code: int
    share: float


def saturable_weights(model: onnx.ModelProto) -> list[Saturable]:
    """The products with a stored int8 weight of which some pair can exceed 16 bits, in the order of the file."""
    found = []
    for view in GraphView.all_of(model):
        for node in view.nodes:
            codes = _codes(view, node)
            if codes is not None and (share := _share(codes)) > 0:
                largest = int(np.abs(codes.astype(np.int64)).max())
                found.append(Saturable(node.name or node.output[0], largest, share))
    return found


def with_exact_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the same meaning whose int8 weights are stored as uint8, 128 higher.

    ONNX Runtime's kernels for two unsigned operands widen them to 16 bits before they multiply, and lose nothing.
    Weights without a zero-point in the file are left as they are.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for view in GraphView.all_of(copy):
        stored = {tensor.name: tensor for tensor in view.graph.initializer}
        raised: dict[str, str] = {}
        for node in view.nodes:
            place = _place(view, node)
            if place is None or _codes(view, node) is None:
                continue
            holder, positions = place
            if len(holder.input) <= max(positions):
                continue  # a zero-point that is not there is 0 of the type of the codes
            for position in positions:
                name = holder.input[position]
                if name in stored and name not in raised:
                    raised[name] = f"{name}/unsigned"
                    codes = numpy_helper.to_array(stored[name]).astype(np.int16) + 128
                    view.graph.initializer.append(numpy_helper.from_array(codes.astype(np.uint8), raised[name]))
                if name in raised:
                    holder.input[position] = raised[name]
    return copy


def _codes(view: GraphView, node: onnx.NodeProto) -> np.ndarray | None:
    """Weight codes, output channels first; None for an operator without int8 weights, and for depthwise ones."""
    place = _place(view, node)
    codes = view.constant(place[0].input[place[1][0]]) if place is not None else None
    if codes is None or codes.dtype != np.int8 or codes.ndim < 2:
        return None
    if "Conv" in node.op_type:
        groups = next((one.i for one in node.attribute if one.name == "group"), 1)
        return None if codes.shape[1] == 1 and groups == len(codes) else codes
    if _transposed(node):
        return codes
    return np.moveaxis(codes, -1, 0).reshape(codes.shape[-1], -1)


def _place(view: GraphView, node: onnx.NodeProto) -> tuple[onnx.NodeProto, tuple[int, int]] | None:
    """Which node holds an operator's weight codes and their zero-point, and as which of its inputs."""
    if node.op_type in WEIGHTED and len(node.input) > 1:
        dequantize = view.dequantizer(node.input[1])
        return None if dequantize is None else (dequantize, (0, 2))
    if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm"):
        return node, (3, 5)
    return (node, (1, 3)) if node.op_type in ("ConvInteger", "MatMulInteger") else None


def _transposed(node: onnx.NodeProto) -> bool:
    return any(one.name == "transB" and one.i for one in node.attribute)


def _share(codes: np.ndarray) -> float:
    """Share of output channels with neighbours that sum to too much with the highest activation."""
    sums = largest_pair(torch.from_numpy(codes.astype(np.int64))) * _HIGHEST_ACTIVATION
    return float((sums > _SUMS.max).double().mean())
