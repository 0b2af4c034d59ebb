"""Which operators of a file the audit asks to be int8.

Every convolution and every matrix product with a weight is asked. An addition, a pooling or an activation function is
asked only where int8 would save conversions: one of its inputs could come as codes, and its result could go on as
codes. Among float operators (the residual sum between two layer normalisations) it is right in float. Attention, the
softmax and the products of two activations, is asked only where somebody put pairs on it: 256 codes are few for
probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from edgekd.targets._element_types import FLOAT_TYPES
from edgekd.targets._graphview import GraphView
from edgekd.targets._kernels import ABSORBED, BOUNDARIES, ELEMENTWISE, MOVES, WEIGHTED, is_int8_operator

__all__ = ["Candidates"]

_ONLY_ON_REQUEST = frozenset({"Softmax"})
"""What loses too much on 256 codes to be asked for, unless it lies between two pairs: then somebody meant it."""

_SPATIAL = ({2, 3}, {-1, -2})


class Candidates:
    """The operators of one graph that could run as int8.

    Args:
        view: the graph.
        types: element type of its tensors.
        ranks: number of dimensions by tensor, as far as it is known.
    """

    def __init__(self, view: GraphView, types: Mapping[str, str], ranks: Mapping[str, int]) -> None:
        self._view = view
        self._types = types
        self._ranks = ranks
        self._capable = {id(node) for node in view.nodes if self._has_kernel(node)}
        self._from_codes = self._sources()
        self._to_codes = self._sinks()

    def asked(self, node: onnx.NodeProto) -> bool:
        """Whether an operator could run as int8, and int8 would pay."""
        if is_int8_operator(node):
            return node.op_type not in BOUNDARIES
        if id(node) not in self._capable:
            return False
        if node.op_type in WEIGHTED:
            return self._is_product(node)
        if node.op_type in ABSORBED | _ONLY_ON_REQUEST:
            return self._between_pairs(node)  # an activation there can be absorbed by nobody
        if node.op_type in MOVES:
            # behind a float operator it is right in float, and becomes int8 by itself together with that one
            return self._behind_pair(node) and bool(self._to_codes.intersection(node.output))
        inputs = self._from_codes.intersection(self._view.data_inputs(node))
        return bool(inputs) and bool(self._to_codes.intersection(node.output))

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor has a floating element type."""
        return self._types.get(tensor, "") in FLOAT_TYPES

    def _has_kernel(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in WEIGHTED | ELEMENTWISE | MOVES | ABSORBED and not self._is_pooling(node):
            return False
        if node.op_type == "Resize" and _text(node, "mode", "nearest") != "nearest":
            return False
        computed = not self._view.is_foldable(node)
        return computed and any(self.is_float(name) for name in node.output if name)

    def _is_pooling(self, node: onnx.NodeProto) -> bool:
        """A mean over height and width, which another operator could compute as int8."""
        if node.op_type != "ReduceMean":
            return False
        axes = next((set(one.ints) for one in node.attribute if one.name == "axes"), None)
        if axes is None and len(node.input) > 1:
            stored = self._view.constant(node.input[1])
            axes = None if stored is None else {int(axis) for axis in stored.reshape(-1)}
        return axes in _SPATIAL and self._ranks.get(node.input[0], 4) == 4

    def _is_product(self, node: onnx.NodeProto) -> bool:
        """A product with a weight, or one of two activations (attention) that somebody put a pair on."""
        if node.op_type not in WEIGHTED or id(node) not in self._capable:
            return False
        if node.op_type != "MatMul" or any(map(self._view.is_constant, node.input)):
            return True
        return any(map(self._comes_from_pair, node.input))

    def _behind_pair(self, node: onnx.NodeProto) -> bool:
        """Whether a move takes from a DQ, directly or through other moves."""
        return self._comes_from_pair(node.input[0])

    def _comes_from_pair(self, tensor: str) -> bool:
        made = self._view.producer(tensor)
        while made is not None and made.op_type in MOVES:
            made = self._view.producer(made.input[0])
        return made is not None and made.op_type == "DequantizeLinear" and not self._view.is_foldable(made)

    def _between_pairs(self, node: onnx.NodeProto) -> bool:
        """Whether an operator takes from a DQ and gives to a Q."""
        users = self._view.consumers(node.output[0])
        from_pair = self._view.dequantizer(node.input[0]) is not None
        return from_pair and any(one.op_type == "QuantizeLinear" for one in users)

    def _sources(self) -> set[str]:
        """Tensors that could come as codes: from a DQ or a product, through operators with int8 kernels."""
        found: set[str] = set()
        for node in self._view.nodes:
            product = self._is_product(node)
            pair = node.op_type == "DequantizeLinear" and not self._view.is_foldable(node)
            if product or pair or (self._passes_codes(node) and found.intersection(self._view.data_inputs(node))):
                found.update(node.output)
        return found

    def _sinks(self) -> set[str]:
        """Tensors that could go on as codes: to a Q or a product, through operators with int8 kernels."""
        found: set[str] = set()
        for node in reversed(self._view.nodes):
            product = self._is_product(node)
            if product or node.op_type == "QuantizeLinear":
                found.update(node.input[:2] if product else node.input[:1])
            elif self._passes_codes(node) and found.intersection(node.output):
                found.update(self._view.data_inputs(node))
        return found

    def _passes_codes(self, node: onnx.NodeProto) -> bool:
        return id(node) in self._capable and node.op_type not in _ONLY_ON_REQUEST | WEIGHTED


def _text(node: onnx.NodeProto, name: str, default: str) -> str:
    return next((one.s.decode() for one in node.attribute if one.name == name), default)
