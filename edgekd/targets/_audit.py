"""Which operators of a Q/DQ file run as int8 kernels in ONNX Runtime, and why the others do not.

The file is optimized by the runtime itself; an operator counts as int8 when the node that stands for it in the
optimized graph takes 8-bit tensors. Nodes are followed by a number put into their names beforehand, but a name
never decides the kind.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from edgekd.targets._base import Audit
from edgekd.targets._causes import island_of
from edgekd.targets._graphview import ABSORBED, PASS_THROUGH, GraphView
from edgekd.targets._modelfile import read_model
from edgekd.targets._onnxruntime import OnnxRuntimeRunner

__all__ = ["FLOAT_TYPES", "audit_onnxruntime", "element_types", "has_quantizers", "runs_as_int8"]

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
ELEMENTWISE = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "Softmax", "LeakyRelu", "ReduceMean"}
)
FLOAT_TYPES = frozenset({"float32", "float16", "float64", "bfloat16"})

_EIGHT_BIT = frozenset({"int8", "uint8"})
_BOUNDARIES = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_STRUCTURE = frozenset({"Constant", "Identity", "Shape", "Cast", "Gather", "ConstantOfShape"})
_LAYOUT = frozenset({"NhwcMaxPool", "ReorderInput", "ReorderOutput"})
_MOVES_VALUES = PASS_THROUGH | _LAYOUT | {"Concat", "Identity", "Resize", "Pad", "Split"}
_INTEGER_RESULT = {"ConvInteger": "int32", "MatMulInteger": "int32", "MatMulIntegerToFloat": "float32"}
_MARK = re.compile(r"^edgekd(\d+)_")


def audit_onnxruntime(path: Path, *, target: str, asked_int8: bool, int8_activations: bool = False) -> Audit:
    """Audit an ONNX file on ONNX Runtime's CPU provider.

    Counted as quantizable: every convolution and matrix product; additions, products, concatenations, poolings, means
    and activation functions with an int8 kernel that lie between the first Q and the last operator that is or could
    be quantized; reshapes and other moves between two of these. A ReLU or clip belongs to the operator before it.

    Args:
        path: the file.
        target: name put into the result.
        asked_int8: whether the file is meant to be int8. If not, nothing counts as quantizable.
        int8_activations: audit as on Arm, where signed activations stay signed; on x86 they are rewritten to
            unsigned ones.

    Raises:
        ModelFileError: the file is damaged, unsafe or refused by the runtime.
    """
    model = read_model(path)
    view = GraphView(model)
    optimized = _optimized(_marked(model), int8_activations=int8_activations)
    ran = _Ran(optimized, view)
    operators = dict(Counter(node.op_type for node in optimized.graph.node))
    if not asked_int8:
        return Audit(target, 0, 0, (), {}, operators)
    types = _float_tensors(model)
    wanted = [index for index, node in enumerate(view.nodes) if _is_quantizable(view, node, types)]
    kinds = {index: kind for index in wanted if (kind := ran.kind(index)) is not None}
    signed_rewritten = not int8_activations
    islands = tuple(
        island_of(view, view.nodes[index], signed_rewritten=signed_rewritten)
        for index, is_int8 in kinds.items()
        if not is_int8
    )
    return Audit(target, len(kinds), sum(kinds.values()), islands, _legitimate(view, ran, wanted, types), operators)


def has_quantizers(model: onnx.ModelProto) -> bool:
    """Whether a model has any Q, DQ or int8 operator: whether somebody meant it to be int8."""
    return GraphView(model).has_quantizers


def element_types(model: onnx.ModelProto) -> dict[str, str]:
    """Element type of the tensors of an optimized graph, followed from inputs, constants and Q nodes.

    ONNX Runtime writes no types into the file, and the checker does not know its own operators.
    """
    name_of = {value: key.lower() for key, value in onnx.TensorProto.DataType.items()}
    types = {value.name: name_of[value.type.tensor_type.elem_type] for value in model.graph.input}
    types |= {tensor.name: name_of[tensor.data_type] for tensor in model.graph.initializer}
    types = {name: {"float": "float32", "double": "float64"}.get(kind, kind) for name, kind in types.items()}
    for node in model.graph.node:
        types.update(dict.fromkeys(node.output, _result_type(node, types)))
    return types


def runs_as_int8(node: onnx.NodeProto, types: Mapping[str, str], constants: Iterable[str]) -> bool:
    """Whether a node of an optimized graph computes on 8-bit data; Q and DQ nodes do not compute."""
    if node.op_type in _BOUNDARIES:
        return False
    stored = set(constants)
    return any(types.get(name) in _EIGHT_BIT for name in node.input if name and name not in stored)


def _result_type(node: onnx.NodeProto, types: Mapping[str, str]) -> str:
    kinds = [types.get(name, "") for name in node.input]
    if node.op_type == "QuantizeLinear":
        return kinds[2] if len(kinds) > 2 and kinds[2] else "uint8"
    if node.op_type == "DynamicQuantizeLinear":
        return "uint8"
    if node.op_type == "DequantizeLinear":
        return kinds[1]
    if node.op_type in _INTEGER_RESULT:
        return _INTEGER_RESULT[node.op_type]
    if node.op_type == "QGemm":  # float out when it has no output zero-point
        return kinds[8] if len(kinds) > 8 and kinds[8] else "float32"
    if node.op_type == "QLinearConcat":  # scale and zero-point of the output come first
        return kinds[1]
    if node.op_type.startswith("QLinear"):
        return next((kind for kind in kinds if kind in _EIGHT_BIT), "")
    if node.op_type in _MOVES_VALUES:
        return kinds[0] if kinds else ""
    return kinds[0] if kinds and kinds[0] in FLOAT_TYPES else ""


class _Ran:
    """The optimized graph, and which of its nodes stand for which node of the file."""

    def __init__(self, optimized: onnx.ModelProto, view: GraphView) -> None:
        self._view = view
        self._index = {id(node): index for index, node in enumerate(view.nodes)}
        self._int8: dict[int, bool] = {}
        types = element_types(optimized)
        constants = {tensor.name for tensor in optimized.graph.initializer}
        for node in optimized.graph.node:
            index = self._index_of(node)
            if index is not None:
                int8 = runs_as_int8(node, types, constants)
                self._int8[index] = self._int8.get(index, False) or int8

    def kind(self, index: int) -> bool | None:
        """Whether the node that stands for node `index` of the file is int8; None when it was removed."""
        node = self._view.nodes[index]
        while self._index[id(node)] not in self._int8:
            users = self._view.consumers(node.output[0])
            # fused into what follows, as a matrix product with its bias: then that one tells
            if len(users) != 1 or users[0].op_type in _BOUNDARIES:
                return None
            node = users[0]
        return self._int8[self._index[id(node)]]

    def is_float(self, index: int) -> bool:
        """Whether node `index` of the file is left as it was, or taken apart into simpler float operators."""
        if index in self._int8:
            return not self._int8[index]
        node = self._view.nodes[index]
        return node.op_type not in ABSORBED and not node.domain and _is_composed(node.op_type)

    def _index_of(self, node: onnx.NodeProto) -> int | None:
        mark = _MARK.match(node.name)
        if mark:
            return int(mark.group(1))
        # blocked-layout float convolutions are named by the tensor they make
        made = self._view.producer(node.name.removesuffix("_nchwc")) if node.domain.endswith(".nchwc") else None
        return None if made is None else self._index[id(made)]


def _is_composed(op_type: str) -> bool:
    """Whether ONNX defines an operator by simpler ones, into which a runtime without a kernel takes it apart."""
    return any(schema.name == op_type for schema in onnx.defs.get_function_ops())


def _marked(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose node names start with the node's number."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for index, node in enumerate(copy.graph.node):
        node.name = f"edgekd{index}_"
    return copy


def _optimized(model: onnx.ModelProto, *, int8_activations: bool) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory(prefix="edgekd-audit-") as folder:
        file = Path(folder) / "optimized.onnx"
        OnnxRuntimeRunner(model.SerializeToString(), optimized_path=file, int8_activations=int8_activations).close()
        return onnx.load(file)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors of floating element type."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name for value in values if value.type.tensor_type.elem_type in kinds}


def _is_quantizable(view: GraphView, node: onnx.NodeProto, floats: set[str]) -> bool:
    if node.op_type.startswith(("QLinear", "QGemm")):  # a file that already holds the runtime's int8 operators
        return True
    if view.is_foldable(node) or node.output[0] not in floats:
        return False
    if node.op_type in WEIGHTED:
        return True
    if node.op_type in ELEMENTWISE:
        return _after_quantizer(view, node) and _before_quantizer(view, node)
    if node.op_type in PASS_THROUGH:
        return _moves_int8(view, node)
    return node.op_type in ABSORBED and _stands_alone(view, node)


def _after_quantizer(view: GraphView, node: onnx.NodeProto) -> bool:
    return any(one.op_type == "DequantizeLinear" and not view.is_foldable(one) for one in view.upstream(node))


def _before_quantizer(view: GraphView, node: onnx.NodeProto) -> bool:
    return any(one.op_type == "QuantizeLinear" or one.op_type in WEIGHTED for one in view.downstream(node))


def _moves_int8(view: GraphView, node: onnx.NodeProto) -> bool:
    """A move that takes from a DQ, through other moves, and gives to a Q or an operator that is quantizable."""
    source = view.producer(node.input[0])
    while source is not None and source.op_type in PASS_THROUGH:
        source = view.producer(source.input[0])
    if source is None or source.op_type != "DequantizeLinear":
        return False
    return any(
        one.op_type == "QuantizeLinear" or one.op_type in WEIGHTED or one.op_type in ELEMENTWISE
        for one in view.downstream(node)
    )


def _stands_alone(view: GraphView, node: onnx.NodeProto) -> bool:
    """A ReLU or clip between a DQ and a Q, which no operator before it can absorb."""
    users = view.consumers(node.output[0])
    return view.dequantizer(node.input[0]) is not None and any(one.op_type == "QuantizeLinear" for one in users)


def _legitimate(view: GraphView, ran: _Ran, wanted: Iterable[int], floats: set[str]) -> dict[str, int]:
    counted = set(wanted)
    found: Counter[str] = Counter()
    for index, node in enumerate(view.nodes):
        if index in counted or node.op_type in _BOUNDARIES | _STRUCTURE or not ran.is_float(index):
            continue
        before = view.producer(node.input[0]) if node.input else None
        explained = node.op_type in ABSORBED and before is not None and before.op_type in WEIGHTED | ELEMENTWISE
        if node.output[0] in floats and not explained:
            found[node.op_type] += 1
    return dict(found)
