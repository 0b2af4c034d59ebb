"""Casting the float rest of a graph to float16."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from qdq_graphs import CHANNELS, SHAPE, Graph, float_net, residual_net

from edgekd.errors import ModelFileError
from edgekd.targets._float16 import to_float16


def _run(model: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # optimized, ONNX Runtime 1.31 quantizes float biases with scales that underflow in float16
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    x = np.random.default_rng(3).normal(size=(4, *SHAPE[1:])).astype(np.float32)
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types | {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}


def _nodes(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


@pytest.mark.parametrize("opset", [17, 18, 20, 21])
def test_answers_stay_close_and_the_boundary_stays_float32(opset: int) -> None:
    model = residual_net(opset=opset)
    half = to_float16(model)

    before, after = _run(model), _run(half)
    assert after.dtype == np.float32
    # float16 keeps 11 bits; a code that rounds the other way moves an activation by one of 127 steps
    assert np.abs(after - before).max() < 0.02 * np.abs(before).max()
    types = _types(half)
    assert types["x"] == TensorProto.FLOAT
    assert {types[node.input[0]] for node in _nodes(half, "Conv")} == {TensorProto.FLOAT16}
    assert max(entry.version for entry in half.opset_import) >= 19


def test_quantization_itself_is_the_boundary_so_one_cast_is_left() -> None:
    half = to_float16(residual_net())

    assert _nodes(half, "QuantizeLinear")[0].input[0] == "x"
    assert Counter(node.op_type for node in half.graph.node)["Cast"] == 1
    assert half.graph.node[-1].op_type == "Cast"


def test_pair_keeps_one_scale_on_both_sides() -> None:
    half = to_float16(residual_net())
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.graph.initializer}
    makers = {name: node for node in half.graph.node for name in node.output}
    pairs = 0
    for node in _nodes(half, "DequantizeLinear"):
        if node.input[0] in makers:
            pairs += 1
            assert float(values[node.input[1]]) == float(values[makers[node.input[0]].input[1]])
    assert pairs == 3


def test_operator_stays_float32_when_float16_loses_its_scales() -> None:
    graph = Graph()
    y = graph.conv(graph.pair("x"), scale=1e-6)
    y = graph.conv(graph.pair(graph.node("Relu", y), scale=1e-2))
    model = graph.model(y)
    half = to_float16(model)

    types = _types(half)
    assert [types[node.input[1]] for node in _nodes(half, "Conv")] == [TensorProto.FLOAT, TensorProto.FLOAT16]
    makers = {name: node for node in half.graph.node for name in node.output}
    # never a Cast between a convolution and its pair
    assert all(makers[name].op_type == "DequantizeLinear" for node in _nodes(half, "Conv") for name in node.input[:2])
    assert np.abs(_run(half) - _run(model)).max() < 0.02 * np.abs(_run(model)).max()


def test_operator_stays_float32_when_its_constant_is_out_of_range() -> None:
    for factor in (1e6, 1e-8):
        graph = Graph()
        model = graph.model(graph.node("Mul", "x", graph.constant(np.float32(factor))))
        assert np.array_equal(_run(to_float16(model)), _run(model))


def test_exponentials_stay_float32() -> None:
    graph = Graph()
    y = graph.node("Softmax", graph.node("GlobalAveragePool", graph.node("Relu", "x")), axis=1)
    half = to_float16(graph.model(y))
    types = _types(half)
    assert types[_nodes(half, "Softmax")[0].input[0]] == TensorProto.FLOAT
    assert types[_nodes(half, "Relu")[0].output[0]] == TensorProto.FLOAT16


def test_output_that_is_also_used_inside_is_written_once_in_each_type() -> None:
    graph = Graph()
    shared = graph.node("Relu", "x")
    model = graph.model(graph.node("Neg", shared))
    model.graph.output.append(helper.make_tensor_value_info(shared, TensorProto.FLOAT, SHAPE))
    half = to_float16(model)
    assert [value.type.tensor_type.elem_type for value in half.graph.output] == [TensorProto.FLOAT] * 2
    assert [value.name for value in half.graph.output] == [value.name for value in model.graph.output]
    assert np.allclose(_run(half), _run(model), atol=2e-3)


def test_float_constants_inside_nodes_are_cast_too() -> None:
    graph = Graph()
    value = numpy_helper.from_array(np.full((1, CHANNELS, 1, 1), 0.5, np.float32))
    half = to_float16(graph.model(graph.node("Add", "x", graph.node("Constant", value=value))))
    assert _types(half)[_nodes(half, "Add")[0].input[1]] == TensorProto.FLOAT16


def test_file_halves_and_the_original_is_untouched() -> None:
    model = float_net()
    helper.set_model_props(model, {"labels": "a,b"})
    before = model.SerializeToString()
    half = to_float16(model)

    assert model.SerializeToString() == before
    assert [(entry.key, entry.value) for entry in half.metadata_props] == [("labels", "a,b")]
    weights = sum(np.prod(tensor.dims) for tensor in model.graph.initializer)
    assert len(before) - half.ByteSize() > 1.5 * weights


def test_casting_twice_changes_nothing() -> None:
    once = to_float16(residual_net())
    assert [node.op_type for node in to_float16(once).graph.node] == [node.op_type for node in once.graph.node]


def test_control_flow_is_refused() -> None:
    body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)])
    graph = Graph()
    y = graph.node("If", graph.constant(np.bool_(True)), then_branch=body, else_branch=body)
    with pytest.raises(ModelFileError, match=r"node 'if0' \(If\) carries a subgraph"):
        to_float16(graph.model(y))
