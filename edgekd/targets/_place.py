"""Where Q/DQ pairs go in a float ONNX graph: the rule table read over ONNX names.

The same rules as in `_annotate`, for a file that has no torch source. First `Placement` says which tensors become
codes and which weights, so that calibration knows what to watch; then `insert_pairs` writes the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from edgekd.errors import UsageError, did_you_mean
from edgekd.targets._base import Numerics
from edgekd.targets._graph import Graph
from edgekd.targets._rules import BY_ONNX, OPERATORS, Operator

__all__ = ["OnnxGroup", "Placement", "float_tensors"]


@dataclass(frozen=True)
class OnnxGroup:
    """One operator of an ONNX graph and the clamp that it is fused with.

    Args:
        name: the node's name, or that of its first output.
        operator: its row of the rule table.
        node: the operator.
        result: the tensor behind the clamp, or its own output.
    """

    name: str
    operator: Operator
    node: NodeProto
    result: str


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors of the main graph, as far as shapes can be inferred."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    named = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return named | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


class Placement:
    """What of a float graph becomes int8 on a target.

    Args:
        graph: a float graph.
        numerics: the target's.
        float_layers: names of nodes that stay float.

    Raises:
        UsageError: a name in `float_layers` that no quantizable node has.
    """

    def __init__(self, graph: Graph, numerics: Numerics, float_layers: Sequence[str] = ()) -> None:
        self.graph, self.numerics = graph, numerics
        self._floats = float_tensors(graph.model)
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        self._makers = {name: node for node in graph.graph.node for name in node.output}
        self.groups = self._groups()
        _check_names(float_layers, [group.name for group in self.groups])
        self.quantized: dict[str, OnnxGroup] = {}
        """The groups that run as int8, by the first output of their operator."""
        candidates = [group for group in self.groups if group.name not in float_layers]
        self._choose(candidates)
        while alone := self._scaled_floats():
            candidates = [group for group in candidates if group.node.output[0] not in alone]
            self._choose(candidates)
        self._joined = self._fused_adds() if numerics.fused_adds else {}
        self.coded: dict[str, str] = {}
        """Tensor that becomes codes -> the tensor whose grid it has: itself, or what was moved to it."""
        self.results: set[str] = set()
        """Coded tensors that an int8 operator makes: whoever reads them reads the dequantized codes."""
        self._code()

    def observed(self) -> list[str]:
        """Computed tensors and inputs whose range must be known, in the order of the graph; no constants."""
        owners = dict.fromkeys(self.coded.values())
        return [name for name in owners if name not in self.graph.constants]

    def weights(self) -> dict[tuple[str, int], list[NodeProto]]:
        """(weight, axis of its output channels) -> the operators that read it so."""
        found: dict[tuple[str, int], list[NodeProto]] = {}
        for group in self.quantized.values():
            if group.operator.role == "weighted":
                found.setdefault((group.node.input[1], _channel_axis(group.node)), []).append(group.node)
        return found

    def reads_codes(self, node: NodeProto, tensor: str) -> bool:
        """Whether a node takes a tensor as dequantized codes."""
        if tensor in self.results:
            return True
        if self._moves(node):
            return node.output[0] in self.coded and self.coded[node.output[0]] == self.coded.get(tensor)
        group = self.quantized.get(node.output[0])
        return group is not None and tensor in self._inputs(group)

    def _groups(self) -> list[OnnxGroup]:
        found = []
        for node in self.graph.graph.node:
            operator = self._operator_of(node)
            if operator is None or operator.role in ("move", "clamp") or node.output[0] not in self._floats:
                continue
            found.append(OnnxGroup(node.name or node.output[0], operator, node, self._behind_clamp(node)))
        return found

    def _operator_of(self, node: NodeProto) -> Operator | None:
        if node.domain not in ("", "ai.onnx"):
            return None
        operator = BY_ONNX.get(node.op_type)
        if operator is None or operator.role != "weighted":
            return operator
        weight = self.graph.constants.get(node.input[1])
        if weight is None:
            return OPERATORS["matmul"] if node.op_type == "MatMul" else None
        plain = node.op_type == "Conv" or (len(weight.dims) == 2 and not _scaled_or_turned(node))
        return operator if plain and weight.data_type == TensorProto.FLOAT else None

    def _behind_clamp(self, node: NodeProto) -> str:
        result = str(node.output[0])
        readers = self._readers.get(result, [])
        if len(readers) != 1 or result in self.graph.outputs or not _starts_at_zero(self.graph, readers[0]):
            return result
        return str(readers[0].output[0])

    def _scaled_floats(self) -> set[str]:
        """Quantized additions and products of a constant and what comes in float: the end of a written out LayerNorm.

        A grid for the constant and conversions around one cheap operator only cost, and hinder the runtime's fusions.
        """
        found = set()
        for output, group in self.quantized.items():
            others = [name for name in self._inputs(group) if name not in self.graph.constants]
            if group.operator.role == "binary" and len(others) == 1 and not self._comes_as_codes(others[0]):
                found.add(output)
        return found

    def _comes_as_codes(self, tensor: str) -> bool:
        made_by = self._makers.get(tensor)
        if made_by is None:
            return False  # an input of the model
        if any(group.result == tensor for group in self.quantized.values()):
            return True
        return self._moves(made_by) and self._comes_as_codes(made_by.input[0])

    def _choose(self, candidates: list[OnnxGroup]) -> None:
        self.quantized = {}
        for group in reversed(candidates):
            if group.operator.name not in self.numerics.operators or not self._fits(group):
                continue
            if group.operator.role in ("binary", "concat", "function") and not self._codes_taken(group.result):
                continue
            self.quantized[group.node.output[0]] = group
        self.quantized = dict(reversed(self.quantized.items()))

    def _fits(self, group: OnnxGroup) -> bool:
        inputs = self._inputs(group)
        if any(name not in self._floats for name in inputs):
            return False
        if group.operator.role in ("product", "binary"):
            # a number that is added or multiplied has no grid of its own worth a conversion
            sizes = [self.graph.constants[name].dims for name in inputs if name in self.graph.constants]
            if len(inputs) != 2 or len(sizes) > 1 or any(int(np.prod(dims)) <= 1 for dims in sizes):
                return False
        return self.numerics.quantize_outputs or group.operator.role in ("weighted", "product", "binary")

    def _inputs(self, group: OnnxGroup) -> list[str]:
        """The activations that a group reads."""
        node, role = group.node, group.operator.role
        if role == "concat" or role in ("product", "binary"):
            return list(dict.fromkeys(node.input))
        return [node.input[0]]

    def _codes_taken(self, tensor: str) -> bool:
        if not self.numerics.quantize_outputs:
            return True
        return any(
            reader.output[0] in self.quantized or (self._moves(reader) and self._codes_taken(reader.output[0]))
            for reader in self._readers.get(tensor, [])
        )

    def _moves(self, node: NodeProto) -> bool:
        operator = self._operator_of(node)
        if operator is None or operator.role != "move" or operator.name not in self.numerics.operators:
            return False
        if len([name for name in node.output if name]) != 1 or node.output[0] not in self._floats:
            return False
        if operator.name != "pad":
            return True
        value = self.graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        return mode == b"constant" and value is not None and not value.any()

    def _code(self) -> None:
        for node in self.graph.graph.node:
            group = self.quantized.get(node.output[0])
            if group is not None:
                self._code_group(group)
            elif self.numerics.quantize_outputs and self._moves(node):
                source, result = node.input[0], node.output[0]
                if source in self.results or (source in self._floats and self._codes_taken(result)):
                    self.coded.setdefault(source, source)
                    self.coded[result] = self.coded[source]
                    self.results.add(result)

    def _code_group(self, group: OnnxGroup) -> None:
        inputs = self._inputs(group)
        if not self.numerics.quantize_outputs and group.operator.role == "binary":
            inputs = self._skip_input(group)
        for name in inputs:
            if self._joined.get(group.node.output[0]) != name:
                self.coded.setdefault(name, name)
        float_result = (
            group.operator.float_result
            and self.numerics.float_results
            and group.result == group.node.output[0]
            and not self._codes_taken(group.result)
        )
        if self.numerics.quantize_outputs and not float_result and group.result not in self._joined.values():
            self.coded[group.result] = group.result
            self.results.add(group.result)

    def _fused_adds(self) -> dict[str, str]:
        """Of each quantized addition the convolution's result that its kernel adds to: one that nobody else reads."""
        found = {}
        for output, group in self.quantized.items():
            for name in self._inputs(group) if group.operator.name == "add" else ():
                made_by = self.quantized.get(name)
                alone = len(self._readers.get(name, [])) == 1 and name not in self.graph.outputs
                if alone and made_by is not None and made_by.operator.name == "convolution":
                    found[output] = name
                    break
        return found

    def _skip_input(self, group: OnnxGroup) -> list[str]:
        """The operand of an addition that is not the result of a convolution, where the other one is."""
        if group.operator.name != "add":
            return []
        made = {name: self.graph.producer(name) for name in self._inputs(group)}
        weighted = [name for name, node in made.items() if node is not None and node.output[0] in self.quantized]
        others = [name for name in made if name not in weighted] or list(made)[1:]
        return others[-1:] if weighted else []


def _channel_axis(node: NodeProto) -> int:
    if node.op_type == "Conv":
        return 0
    turned = next((a.i for a in node.attribute if a.name == "transB"), 0)
    return 0 if node.op_type == "Gemm" and turned else 1


def _scaled_or_turned(node: NodeProto) -> bool:
    """A Gemm that does more than x @ w + b."""
    numbers = {a.name: (a.f, a.i) for a in node.attribute}
    return any(numbers.get(name, (1.0, 0))[0] != 1.0 for name in ("alpha", "beta")) or (
        numbers.get("transA", (0.0, 0))[1] != 0
    )


def _starts_at_zero(graph: Graph, node: NodeProto) -> bool:
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or len(node.input) < 2 or not node.input[1]:
        return False
    tensor = graph.constants.get(node.input[1])
    return tensor is not None and not numpy_helper.to_array(tensor).any()


def _check_names(wanted: Sequence[str], known: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            raise UsageError(f"float_layers: no quantizable node '{name}'. {did_you_mean(name, known)}")
