"""Which operators of a Q/DQ file run as int8 kernels in ONNX Runtime, and why the others do not.

The file is optimized by the runtime itself; an operator counts as int8 when the node that stands for it in the
optimized graph takes 8-bit tensors. Nodes are followed by a number put into their names beforehand, but a name
never decides the kind. Where the runtime cannot load a file, the rules alone say what they expect of it.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner

from edgekd.targets._base import Audit, Island
from edgekd.targets._candidates import Candidates
from edgekd.targets._causes import finding_of, island_of
from edgekd.targets._element_types import FLOAT_TYPES, element_types
from edgekd.targets._graphview import GraphView, unique_labels
from edgekd.targets._kernels import ABSORBED, BOUNDARIES, CONTROL, ELEMENTWISE, STRUCTURE, WEIGHTED
from edgekd.targets._modelfile import read_model
from edgekd.targets._onnxruntime import OnnxRuntimeRunner
from edgekd.targets._ran import Ran, mark
from edgekd.targets._site import Site

__all__ = ["Examined", "audit_onnxruntime", "examine", "has_quantizers", "marked", "optimized", "readable"]

_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


@dataclass(frozen=True)
class Examined:
    """What the audit found out about each operator of a file; operators are known by their number.

    Args:
        quantizable: operators that could run as int8, and whether each does.
        islands: those that do not.
        legitimate: types of the float operators that are right in float, as they run.
        operators: operator types of the graph that really runs, or of the file where it was not run.
        ran: that graph, None where it was not run.
    """

    quantizable: Mapping[int, bool]
    islands: Mapping[int, Island]
    legitimate: Mapping[str, int]
    operators: Mapping[str, int]
    ran: Ran | None

    def audit(self, target: str) -> Audit:
        """The same, counted."""
        return Audit(
            target=target,
            quantizable=len(self.quantizable),
            int8=sum(self.quantizable.values()),
            islands=tuple(self.islands.values()),
            legitimate=dict(self.legitimate),
            operators=dict(self.operators),
        )


def audit_onnxruntime(path: Path, *, target: str, asked_int8: bool, int8_activations: bool = False) -> Audit:
    """Audit an ONNX file on ONNX Runtime's CPU provider.

    Args:
        path: the file.
        target: name put into the result.
        asked_int8: whether the file is meant to be int8. If not, nothing counts as quantizable.
        int8_activations: audit as on Arm, where signed activations stay signed; on x86 they are rewritten to
            unsigned ones.

    Raises:
        ModelFileError: the file is damaged, unsafe or refused by the runtime.
    """
    model = readable(read_model(path))
    ran = optimized(marked(model), int8_activations=int8_activations)
    found = examine(model, ran, asked_int8=asked_int8, signed_rewritten=not int8_activations)
    return found.audit(target)


def examine(
    model: onnx.ModelProto, ran: onnx.ModelProto | None, *, asked_int8: bool, signed_rewritten: bool
) -> Examined:
    """Say of every operator whether it is int8, an island, or right in float.

    Args:
        model: the file, from `readable`.
        ran: the graph that the runtime made of the marked file; None to go by the rules alone.
        asked_int8: whether the file is meant to be int8. If not, nothing counts as quantizable.
        signed_rewritten: whether the runtime makes signed activations unsigned, as on x86.
    """
    return _Examination(model, ran, signed_rewritten).result(asked_int8)


def has_quantizers(model: onnx.ModelProto) -> bool:
    """Whether a model has any Q, DQ or int8 operator: whether somebody meant it to be int8."""
    return GraphView(model).has_quantizers


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions put in place of their calls, as the runtime does."""
    if not model.functions:
        return model
    inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    return inlined


def marked(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose node names, in every body too, are the node's number."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = (node for view in GraphView.all_of(copy) for node in view.nodes)
    for number, node in enumerate(nodes):
        node.name = mark(number)
    return copy


def optimized(model: onnx.ModelProto, *, int8_activations: bool) -> onnx.ModelProto:
    """The graph that the runtime makes of a model.

    Raises:
        ModelFileError: the runtime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-audit-") as folder:
        file = Path(folder) / "optimized.onnx"
        OnnxRuntimeRunner(model.SerializeToString(), optimized_path=file, int8_activations=int8_activations).close()
        return onnx.load(file)


class _Examination:
    """One file, the views of its graphs, and the graph that ran."""

    def __init__(self, model: onnx.ModelProto, ran: onnx.ModelProto | None, signed_rewritten: bool) -> None:
        self._views = GraphView.all_of(model)
        self._types = element_types(model.graph)
        self._nodes = [(view, node) for view in self._views for node in view.nodes]
        self._labels = unique_labels(self._views)
        self._quantized = self._views[0].has_quantizers
        self._signed_rewritten = signed_rewritten
        self._ran = Ran(ran, self._views) if ran is not None else None
        ranks = _ranks(model)
        self._candidates = {id(view): Candidates(view, self._types, ranks) for view in self._views}

    def result(self, asked_int8: bool) -> Examined:
        quantizable: dict[int, bool] = {}
        islands: dict[int, Island] = {}
        for number, (view, node) in enumerate(self._nodes):
            if not asked_int8 or not self._candidates[id(view)].asked(node):
                continue
            kind = self._kind(number)
            if kind is not None:
                quantizable[number] = kind
            if kind is False:
                islands[number] = island_of(self._site(number))
        ran = self._ran.operators if self._ran is not None else Counter(node.op_type for _, node in self._nodes)
        legitimate = self._legitimate(quantizable) if asked_int8 else {}
        return Examined(quantizable, islands, legitimate, ran, self._ran)

    def _kind(self, number: int) -> bool | None:
        """Whether an operator is int8; None when it is not there any more."""
        if self._ran is not None:
            return self._ran.kind(number)
        node = self._nodes[number][1]
        finding = finding_of(self._site(number))
        if finding is None and node.op_type in ABSORBED:
            return None
        return finding is None

    def _site(self, number: int) -> Site:
        view, node = self._nodes[number]
        return Site(view, node, self._labels[number], self._quantized, self._signed_rewritten)

    def _legitimate(self, quantizable: Mapping[int, bool]) -> Counter[str]:
        if self._ran is not None:
            return Counter(op for _, op in self._ran.float_nodes(quantizable))
        found: Counter[str] = Counter()
        for number, (view, node) in enumerate(self._nodes):
            if number in quantizable or node.op_type in BOUNDARIES | STRUCTURE | CONTROL or view.is_foldable(node):
                continue
            before = view.producer(node.input[0]) if node.input else None
            absorbed = node.op_type in ABSORBED and before is not None and before.op_type in WEIGHTED | ELEMENTWISE
            # where nothing tells the type, as behind an operator of another domain, it counts
            floats = any(self._types.get(name, "float32") in FLOAT_TYPES for name in node.output if name)
            if floats and not absorbed:
                found[node.op_type if node.domain in _KNOWN_DOMAINS else f"{node.domain}:{node.op_type}"] += 1
        return found


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Number of dimensions by tensor, as far as ONNX can tell."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    shapes = {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}
    return {name: len(kind.shape.dim) for name, kind in shapes.items() if kind.HasField("shape")}
