"""The PT2E quantizer of every target: which tensors of an exported graph get a Q/DQ pair, and on which grid.

The graph is in the normal form of `edgekd._normal_form` and read as the fusion groups of `_groups`. Where the target
wants Q/DQ on outputs (ONNX Runtime), a group's inputs and its last node's output are quantized, nothing inside it.
Where it does not (TensorRT), only the inputs of weighted operators are, and the skip input of an add, so that
convolution, add and ReLU stay one fused kernel. Which operators there are stands in `_rules`, which of them a target
takes in its `Numerics`.

Int8 pays only where somebody takes the codes: an addition, a product or a concatenation between float operators (the
residual stream of a transformer) stays float, and so does the result of a linear layer in front of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from edgekd.targets._groups import (
    Group,
    chosen,
    fused_end,
    groups,
    is_float_tensor,
    is_weighted,
    live_nodes,
    operator_of,
)

__all__ = ["TargetQuantizer", "fused_end", "is_weighted", "live_nodes"]

_aten = torch.ops.aten


class TargetQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates an exported graph by a target's numerics.

    Args:
        numerics: the target's grid and placement.
        calibrator: chooses every activation's range.
        reduce_range: neighbouring weights share their 8 bits, so that sums of u8 * s8 pairs fit int16 on x86
            processors without VNNI; those of depthwise convolutions, which no kernel sums so, do not.
        float_layers: names or patterns of groups that stay float; see `_groups.chosen`.

    Logits that come straight from a fully connected layer keep their float values: every runtime fuses that.
    """

    def __init__(
        self, numerics: Numerics, *, calibrator: Calibrator, reduce_range: bool, float_layers: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.numerics = numerics
        self.float_layers = tuple(float_layers)
        self._live: set[Node] = set()
        self._quantized: set[Node] = set()
        self._joined: dict[Node, Node] = {}
        low, high = (0, 255) if numerics.activation == "uint8" else (-128, 127)
        grid = Grid(low, high, numerics.symmetric_activations, numerics.half_scales)
        self._activation = QuantizationSpec(
            dtype=torch.uint8 if numerics.activation == "uint8" else torch.int8,
            observer_or_fake_quant_ctr=ActivationQuantizer.with_args(calibrator=calibrator, grid=grid),
            quant_min=low,
            quant_max=high,
            qscheme=torch.per_tensor_symmetric if grid.symmetric else torch.per_tensor_affine,
        )
        self._weight = _weight_specification(numerics, pairs=reduce_range)
        self._depthwise_weight = _weight_specification(numerics, pairs=False)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write an annotation on every node that the target runs as int8.

        Raises:
            UsageError: a name in `float_layers` that no layer has.
        """
        self._live = live_nodes(model)
        found = groups(model)
        floats = chosen(found, self.float_layers)
        self._choose([group for group in found if group.name not in floats])
        annotate = {"weighted": self._weighted, "product": self._product, "binary": self._binary}
        annotate |= {"pool": self._single, "function": self._single, "concat": self._concat}
        by_node = {group.node: group for group in found if group.node in self._quantized}
        for node in list(model.graph.nodes):
            if node in by_node:
                annotate[by_node[node].operator.role](by_node[node])
            elif self.numerics.quantize_outputs and node in self._live and self._moves(node):
                self._move(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to refuse: an operator without a rule stays float and the audit names it."""

    def _choose(self, candidates: list[Group]) -> None:
        """Find the groups that run as int8."""
        self._choose_by_readers(candidates)
        while alone := self._scaled_floats(candidates):
            candidates = [group for group in candidates if group not in alone]
            self._choose_by_readers(candidates)
        self._joined = self._fused_adds() if self.numerics.fused_adds else {}

    def _choose_by_readers(self, candidates: list[Group]) -> None:
        """From the end, since what is read in float is not worth its conversions."""
        self._quantized = set()
        for group in reversed(candidates):
            operator = group.operator
            if operator.name not in self.numerics.operators or not self._fits(group):
                continue
            if operator.role in ("binary", "concat", "function") and not self._codes_taken(group.end):
                continue
            self._quantized.add(group.node)

    def _scaled_floats(self, candidates: list[Group]) -> list[Group]:
        """Quantized additions and products of a constant and what comes in float.

        A grid for the constant and conversions around one cheap operator only cost, and hinder the runtime's fusions.
        """
        ends = {group.end for group in candidates if group.node in self._quantized}
        found = []
        for group in candidates:
            others = [node for node in group.node.all_input_nodes if node.op != "get_attr"]
            lone = group.operator.role == "binary" and group.node in self._quantized and len(others) == 1
            if lone and len(group.node.all_input_nodes) == 2 and not self._comes_as_codes(others[0], ends):
                found.append(group)
        return found

    def _comes_as_codes(self, node: Node, ends: set[Node]) -> bool:
        if node in ends or node.op != "call_function":
            return node in ends
        return self._moves(node) and self._comes_as_codes(cast(Node, node.args[0]), ends)

    def _fused_adds(self) -> dict[Node, Node]:
        """Of each quantized addition the convolution whose kernel adds: one whose result nobody else reads."""
        found = {}
        for node in self._quantized:
            operator = operator_of(node)
            for source in node.all_input_nodes if operator is not None and operator.name == "add" else ():
                readers = [user for user in source.users if user in self._live]
                made_by = operator_of(source)
                is_convolution = made_by is not None and made_by.name == "convolution"
                if is_convolution and source in self._quantized and len(readers) == 1:
                    found[node] = source
                    break
        return found

    def quantized_groups(self, model: GraphModule) -> list[str]:
        """Names of the groups that `annotate` makes int8, in the order of execution; the model is not changed."""
        self._live = live_nodes(model)
        found = groups(model)
        floats = chosen(found, self.float_layers)
        self._choose([group for group in found if group.name not in floats])
        return [group.name for group in found if group.node in self._quantized]

    def _fits(self, group: Group) -> bool:
        role, inputs = group.operator.role, group.node.all_input_nodes
        if not self.numerics.quantize_outputs:
            # a skip input is fused with the convolution whose result it is added to
            wanted = [group.node.args[0]] if role == "weighted" else inputs
            return role in ("weighted", "product", "binary") and all(is_float_tensor(one) for one in wanted)
        if role in ("product", "binary"):
            return len(inputs) == 2 and all(is_float_tensor(one) for one in inputs)
        return is_float_tensor(inputs[0])

    def _codes_taken(self, node: Node) -> bool:
        """Whether anybody reads a node's result as codes, straight or through operators that only move them."""
        if not self.numerics.quantize_outputs:
            return True
        readers = [user for user in node.users if user in self._live]
        return any(user in self._quantized or (self._moves(user) and self._codes_taken(user)) for user in readers)

    def _moves(self, node: Node) -> bool:
        operator = operator_of(node)
        if operator is None or operator.role != "move" or operator.name not in self.numerics.operators:
            return False
        # any other padding would need a code of its own on the input's grid
        return operator.name != "pad" or len(node.args) < 3 or node.args[2] in (0, 0.0)

    def _weighted(self, group: Group) -> None:
        data, weight = cast(Node, group.node.args[0]), cast(Node, group.node.args[1])
        specification = self._depthwise_weight if _is_depthwise(group.node) else self._weight
        self._mark(group.node, {data: self._activation, weight: specification})
        self._mark_result(group)

    def _product(self, group: Group) -> None:
        self._mark(group.node, dict.fromkeys(group.node.all_input_nodes, self._activation))
        self._mark_result(group)

    def _mark_result(self, group: Group) -> None:
        """A Q behind a group, unless its kernel gives floats and floats are what is read."""
        gives_floats = group.operator.float_result and self.numerics.float_results
        float_result = gives_floats and group.end is group.node and not self._codes_taken(group.end)
        if self.numerics.quantize_outputs and not float_result and group.node not in self._joined.values():
            self._mark_output(group.end)

    def _binary(self, group: Group) -> None:
        inputs = group.node.all_input_nodes
        if self.numerics.quantize_outputs:
            joined = self._joined.get(group.node)
            self._mark(group.node, dict.fromkeys((one for one in inputs if one is not joined), self._activation))
            self._mark_output(group.end)
        else:
            self._mark(group.node, {_skip_input(inputs): self._activation})

    def _single(self, group: Group) -> None:
        self._mark(group.node, {cast(Node, group.node.args[0]): self._activation})
        self._mark_output(group.end)

    def _concat(self, group: Group) -> None:
        parts = cast(Iterable[object], group.node.args[0])
        self._mark(group.node, {part: self._activation for part in parts if isinstance(part, Node)})
        self._mark_output(group.end)

    def _move(self, node: Node) -> None:
        source = node.args[0]
        if not isinstance(source, Node) or not is_float_tensor(source):
            return
        annotation = source.meta.get(Q_ANNOTATION_KEY)
        comes_as_codes = annotation is not None and annotation.output_qspec is not None
        if not comes_as_codes and not self._codes_taken(node):
            return
        self._mark(node, {source: self._activation})
        node.meta[Q_ANNOTATION_KEY].output_qspec = SharedQuantizationSpec((source, node))

    @staticmethod
    def _mark(node: Node, inputs: dict[Node, QuantizationSpec]) -> None:
        annotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation(_annotated=True))
        annotation.input_qspec_map.update(inputs)

    def _mark_output(self, node: Node) -> None:
        annotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation(_annotated=True))
        annotation.output_qspec = self._activation


def _weight_specification(numerics: Numerics, *, pairs: bool) -> QuantizationSpec:
    grid = Grid(-127, 127, symmetric=True, half_scales=numerics.half_scales)
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=PerChannelWeightQuantizer.with_args(grid=grid, pairs=pairs),
        quant_min=grid.low,
        quant_max=grid.high,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


def _is_depthwise(node: Node) -> bool:
    """Whether a weighted operator is a convolution with one input and one output channel in every group."""
    groups_given = node.args[6] if len(node.args) > 6 else 1
    weight = cast(Node, node.args[1]).meta["val"]
    return bool(weight.ndim > 2 and weight.shape[1] == 1 and weight.shape[0] == groups_given)


def _skip_input(inputs: list[Node]) -> Node:
    """The input of an add that is not a convolution's own result, else the second one.

    TensorRT fuses convolution + add + ReLU when the other operand arrives as int8.
    """
    for node in reversed(inputs):
        if not is_weighted(node):
            return node
    return inputs[-1]
