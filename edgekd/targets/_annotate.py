"""The PT2E quantizer of every target: which tensors of an exported graph get a Q/DQ pair, and on which grid.

The graph is in the normal form of `edgekd._normal_form` and read as fusion groups. A group is a weighted operator
or an add with the ReLU or ReLU6 behind it, or a pool. Where the target wants Q/DQ on outputs (ONNX Runtime), a
group's inputs and its last node's output are quantized, nothing inside it. Where it does not (TensorRT), only the
inputs of weighted operators are, and the skip input of an add, so that convolution, add and ReLU stay one fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgekd.calibration._base import Calibrator, Grid
from edgekd.calibration._fake_quantize import ActivationQuantizer, PerChannelWeightQuantizer
from edgekd.targets._base import Numerics

__all__ = ["TargetQuantizer", "fused_end", "is_weighted", "live_nodes"]

_aten = torch.ops.aten

_WEIGHTED = {_aten.conv1d.default, _aten.conv2d.default, _aten.linear.default}
_BINARY = {_aten.add.Tensor, _aten.mul.Tensor}
_POOLS = {_aten.adaptive_avg_pool2d.default, _aten.avg_pool2d.default}
_PASS_THROUGH = {
    _aten.max_pool2d.default,
    _aten.flatten.using_ints,
    _aten.view.default,
    _aten.reshape.default,
    _aten.permute.default,
    _aten.transpose.int,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.unsqueeze.default,
}
_CONCAT = {_aten.cat.default}


def is_weighted(node: Node) -> bool:
    """Whether a node is a convolution or a fully connected layer."""
    return node.op == "call_function" and node.target in _WEIGHTED


def _starts_at_zero(node: Node) -> bool:
    """Whether a node is a ReLU, or a clamp to [0, something]: what a zero-point at the lowest code absorbs."""
    if node.target is _aten.hardtanh.default:
        return len(node.args) > 1 and node.args[1] in (0, 0.0)
    return node.target is _aten.relu.default


def live_nodes(model: GraphModule) -> set[Node]:
    """The nodes that the logits depend on; the others serve taps only, and are dropped with them."""
    output = next(node for node in model.graph.nodes if node.op == "output")
    found: set[Node] = set()
    waiting = [output.args[0][0]]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def fused_end(node: Node, live: set[Node]) -> Node:
    """The last node of the group that starts at `node`: the ReLU behind it, or itself.

    Taps do not count as readers: what is shipped must not depend on them.
    """
    readers = [user for user in node.users if user in live]
    return readers[0] if len(readers) == 1 and _starts_at_zero(readers[0]) else node


class TargetQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates an exported graph by a target's numerics.

    Args:
        numerics: the target's grid and placement.
        calibrator: chooses every activation's range.
        reduce_range: weights use 7 of their 8 bits, so that sums of u8 * s8 pairs fit int16 on x86
            processors without VNNI.

    Logits that come straight from a fully connected layer keep their float values: every runtime fuses that.
    """

    def __init__(self, numerics: Numerics, *, calibrator: Calibrator, reduce_range: bool) -> None:
        super().__init__()
        self.numerics = numerics
        self._live: set[Node] = set()
        low, high = (0, 255) if numerics.activation == "uint8" else (-128, 127)
        grid = Grid(low, high, numerics.symmetric_activations, numerics.half_scales)
        self._activation = QuantizationSpec(
            dtype=torch.uint8 if numerics.activation == "uint8" else torch.int8,
            observer_or_fake_quant_ctr=ActivationQuantizer.with_args(calibrator=calibrator, grid=grid),
            quant_min=low,
            quant_max=high,
            qscheme=torch.per_tensor_symmetric if grid.symmetric else torch.per_tensor_affine,
        )
        top = 64 if reduce_range else 127
        self._weight = QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=PerChannelWeightQuantizer.with_args(
                grid=Grid(-top, top, symmetric=True, half_scales=numerics.half_scales)
            ),
            quant_min=-top,
            quant_max=top,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write an annotation on every node that the target runs as int8."""
        self._live = live_nodes(model)
        for node in list(model.graph.nodes):
            if node.op != "call_function" or node not in self._live:
                continue
            if is_weighted(node):
                self._weighted(node)
            elif node.target in _BINARY:
                self._binary(node)
            elif self.numerics.quantize_outputs and node.target in _POOLS:
                self._pool(node)
            elif self.numerics.quantize_outputs and node.target in _PASS_THROUGH:
                self._pass_through(node)
            elif self.numerics.quantize_outputs and node.target in _CONCAT:
                self._concat(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to refuse: an operator without a rule stays float and the audit names it."""

    def _weighted(self, node: Node) -> None:
        data, weight = cast(Node, node.args[0]), cast(Node, node.args[1])
        self._mark(node, {data: self._activation, weight: self._weight})
        end = fused_end(node, self._live)
        if self.numerics.quantize_outputs and not self._gives_logits(node, end):
            self._mark_output(end)

    @staticmethod
    def _gives_logits(node: Node, end: Node) -> bool:
        return end is node and node.target is _aten.linear.default and all(u.op == "output" for u in node.users)

    def _binary(self, node: Node) -> None:
        inputs = [arg for arg in node.args if isinstance(arg, Node)]
        if len(inputs) != 2 or not all(_is_float_tensor(arg) for arg in inputs):
            return
        if self.numerics.quantize_outputs:
            self._mark(node, dict.fromkeys(inputs, self._activation))
            self._mark_output(fused_end(node, self._live))
        elif node.target is _aten.add.Tensor:
            self._mark(node, {_skip_input(inputs): self._activation})

    def _pool(self, node: Node) -> None:
        self._mark(node, {cast(Node, node.args[0]): self._activation})
        self._mark_output(fused_end(node, self._live))

    def _pass_through(self, node: Node) -> None:
        source = node.args[0]
        if not isinstance(source, Node) or not _is_float_tensor(source):
            return
        self._mark(node, {source: self._activation})
        node.meta[Q_ANNOTATION_KEY].output_qspec = SharedQuantizationSpec((source, node))

    def _concat(self, node: Node) -> None:
        parts = node.args[0]
        if isinstance(parts, Iterable):
            self._mark(node, {part: self._activation for part in parts if isinstance(part, Node)})
            self._mark_output(fused_end(node, self._live))

    @staticmethod
    def _mark(node: Node, inputs: dict[Node, QuantizationSpec]) -> None:
        annotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation(_annotated=True))
        annotation.input_qspec_map.update(inputs)

    def _mark_output(self, node: Node) -> None:
        annotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation(_annotated=True))
        annotation.output_qspec = self._activation


def _is_float_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.ndim > 0


def _skip_input(inputs: list[Node]) -> Node:
    """The input of an add that is not a convolution's own result, else the second one.

    TensorRT fuses convolution + add + ReLU when the other operand arrives as int8.
    """
    for node in reversed(inputs):
        if not is_weighted(node):
            return node
    return inputs[-1]
