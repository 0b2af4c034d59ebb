"""Which operators of a Q/DQ file run as int8 in OpenVINO's CPU plugin, read from the graph that it executes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from edgekd.errors import ModelFileError
from edgekd.targets._audit import marked, readable
from edgekd.targets._base import Audit, Island
from edgekd.targets._candidates import Candidates
from edgekd.targets._element_types import FLOAT_TYPES, element_types
from edgekd.targets._graphview import GraphView, unique_labels
from edgekd.targets._kernels import ABSORBED, BOUNDARIES, ELEMENTWISE, STRUCTURE, WEIGHTED
from edgekd.targets._modelfile import read_model
from edgekd.targets._openvino_causes import island_of
from edgekd.targets._openvino_executed import Executed
from edgekd.targets._openvino_runner import IR_SUFFIX

__all__ = ["audit_openvino"]

_WITHOUT_KERNEL = frozenset({"Softmax", "Where", "Tile", "Expand"})
"""What ONNX Runtime has an int8 kernel for and this plugin has none."""


def audit_openvino(path: Path, *, target: str) -> Audit:
    """Audit an ONNX file on OpenVINO's CPU plugin of this processor.

    Asked to be int8 is what `_candidates` asks, less a few operators without a kernel here; a product of two
    activations is right in float where the processor has no kernel for it.

    Args:
        path: the ONNX file; an IR does not tell what its operators were.
        target: name put into the result.

    Raises:
        ModelFileError: the file is damaged, unsafe, an IR, or refused by the runtime.
        BackendMissing: no OpenVINO.
    """
    if path.suffix == IR_SUFFIX:
        raise ModelFileError(f"{path}: an IR cannot be audited. Give the ONNX file that it was made from.")
    model = readable(read_model(path))
    return _Examination(model, Executed(marked(model))).result(target)


class _Examination:
    """One file and what became of it."""

    def __init__(self, model: onnx.ModelProto, executed: Executed) -> None:
        self._executed = executed
        self._view = GraphView(model)
        self._types = element_types(model.graph)
        self._labels = unique_labels([self._view])
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in values if one.type.HasField("tensor_type")}
        self._candidates = Candidates(self._view, self._types, ranks)

    def result(self, target: str) -> Audit:
        kinds: dict[int, bool] = {}
        for number, node in enumerate(self._view.nodes):
            kind = self._executed.kind(number) if self._asked(node) else None
            if kind is not None and (kind or not self._is_product_of_activations(node)):
                kinds[number] = kind
        islands: list[Island] = [
            island_of(self._view, self._view.nodes[number], self._labels[number])
            for number, kind in kinds.items()
            if not kind
        ]
        return Audit(
            target=target,
            quantizable=len(kinds),
            int8=sum(kinds.values()),
            islands=tuple(islands),
            legitimate=dict(self._legitimate(set(kinds))),
            operators=self._executed.operators,
        )

    def _asked(self, node: onnx.NodeProto) -> bool:
        return node.op_type not in _WITHOUT_KERNEL and self._candidates.asked(node)

    def _is_product_of_activations(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "MatMul" and not any(self._view.is_constant(name) for name in node.input)

    def _legitimate(self, asked: set[int]) -> Counter[str]:
        found: Counter[str] = Counter()
        for number, node in enumerate(self._view.nodes):
            if number in asked or node.op_type in BOUNDARIES | STRUCTURE or self._executed.kind(number) is not False:
                continue
            before = self._view.producer(node.input[0]) if node.input else None
            absorbed = node.op_type in ABSORBED and before is not None and before.op_type in WEIGHTED | ELEMENTWISE
            if not absorbed and any(self._types.get(name, "") in FLOAT_TYPES for name in node.output):
                found[node.op_type] += 1
        return found
