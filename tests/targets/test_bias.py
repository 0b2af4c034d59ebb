"""Biases of an ONNX graph corrected in one pass: by hand, for every kind of operator, and by what it brings."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from int8_models import exported, images, sqnr_db, target
from onnx import TensorProto, helper, numpy_helper

from edgekd._observing import observe
from edgekd.calibration.minmax import MinMax
from edgekd.quantize_onnx import quantize_onnx
from edgekd.spec import Options
from edgekd.targets._bias import correct_biases, mean_inputs
from edgekd.targets._graph import Graph
from edgekd.targets._onnxruntime import OnnxRuntimeRunner
from edgekd.targets._pairs import weight_codes
from edgekd.targets._place import Placement

X86 = target("onnxruntime_x86").numerics


def model_of(nodes: list[onnx.NodeProto], shape: list[int | str], **constants: np.ndarray) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )


def node(op: str, inputs: list[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], f"make_{output}", **attributes)


def corrected(model: onnx.ModelProto, data: np.ndarray, *, reduce_range: bool = False) -> tuple[Graph, int]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    placement = Placement(graph, X86)
    wanted = mean_inputs(graph, placement)
    means = {name: one.value for name, one in observe(model, [], [{"x": data}], means=wanted).means.items()}
    return graph, correct_biases(graph, placement, means, numerics=X86, reduce_range=reduce_range)


def value(graph: Graph, name: str) -> np.ndarray:
    found = graph.value(name)
    assert found is not None
    return found


def outputs(model: onnx.ModelProto, data: np.ndarray) -> np.ndarray:
    with OnnxRuntimeRunner(model.SerializeToString()) as runner:
        return next(iter(runner.run({"x": data}).values()))


def test_bias_is_the_one_worked_by_hand() -> None:
    # the largest weight is code 127, so a step is a hundredth; 0.104 becomes 0.10, and the mean of its input is 3
    model = model_of(
        [node("Gemm", ["x", "w", "b"], transB=1)], ["B", 2], w=np.array([[1.27, 0.104]]), b=np.array([0.5])
    )
    graph, count = corrected(model, np.array([[5.0, 2.0], [7.0, 4.0]], np.float32))
    assert count == 1
    assert value(graph, "b") == pytest.approx([0.5 + 0.004 * 3], abs=1e-6)


LAYERS = {
    "convolution": (node("Conv", ["x", "w", "b"]), ["B", 4, 6, 6], (8, 4, 3, 3)),
    "padding": (node("Conv", ["x", "w", "b"], pads=[1, 0, 2, 1], strides=[2, 1]), ["B", 4, 6, 5], (8, 4, 3, 3)),
    "dilation": (node("Conv", ["x", "w", "b"], pads=[2] * 4, dilations=[2, 2]), ["B", 4, 6, 6], (8, 4, 3, 3)),
    "same": (node("Conv", ["x", "w", "b"], auto_pad="SAME_UPPER", strides=[2, 2]), ["B", 4, 6, 7], (8, 4, 3, 3)),
    "lower": (node("Conv", ["x", "w", "b"], auto_pad="SAME_LOWER", strides=[2, 2]), ["B", 4, 6, 7], (8, 4, 3, 3)),
    "groups": (node("Conv", ["x", "w", "b"], group=2), ["B", 4, 6, 6], (8, 2, 3, 3)),
    "depthwise": (node("Conv", ["x", "w", "b"], group=4), ["B", 4, 6, 6], (4, 1, 3, 3)),
    "one dimension": (node("Conv", ["x", "w", "b"]), ["B", 4, 9], (8, 4, 3)),
    "linear": (node("Gemm", ["x", "w", "b"], transB=1), ["B", 6], (8, 6)),
    "turned": (node("Gemm", ["x", "w", "b"]), ["B", 6], (6, 8)),
}


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_mean_of_every_channel_is_that_of_float_with_rounded_weights(kind: str, reduce_range: bool) -> None:
    layer, shape, size = LAYERS[kind]
    generator = np.random.default_rng(0)
    channels = size[1] if kind == "turned" else size[0]
    weight = generator.standard_normal(size).astype(np.float32)
    model = model_of([layer], shape, w=weight, b=np.zeros(channels))
    data = generator.standard_normal((16, *map(int, shape[1:]))).astype(np.float32) + 2
    graph, count = corrected(model, data, reduce_range=reduce_range)
    assert count == 1
    axis = 1 if kind == "turned" else 0
    codes, scale = weight_codes(weight, axis, [layer], numerics=X86, reduce_range=reduce_range)
    along = [-1 if one == axis else 1 for one in range(weight.ndim)]
    rounded = (codes * scale.reshape(along)).astype(np.float32)
    kept = tuple(one for one in range(len(shape)) if one != 1)
    wanted = outputs(model, data).mean(axis=kept)
    before = outputs(model_of([layer], shape, w=rounded, b=np.zeros(channels)), data).mean(axis=kept)
    after = outputs(model_of([layer], shape, w=rounded, b=value(graph, "b")), data).mean(axis=kept)
    assert np.abs(before - wanted).max() > 1e-3
    np.testing.assert_allclose(after, wanted, atol=2e-5)


def test_convolution_without_a_bias_gets_one() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 2, 1, 1))
    model = model_of([node("Conv", ["x", "w"])], ["B", 2, 3, 3], w=weight)
    graph, count = corrected(model, np.ones((2, 2, 3, 3), np.float32))
    assert count == 1
    assert value(graph, graph.graph.node[0].input[2]).shape == (4,)


def test_addition_behind_a_product_is_its_bias_if_nobody_else_reads_it() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4))
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", ["p", "b"])]
    graph, count = corrected(model_of(nodes, ["B", 3, 6], w=weight, b=np.zeros(4)), np.ones((2, 3, 6), np.float32))
    assert count == 1
    assert np.abs(value(graph, "b")).max() > 0
    shared = [node("MatMul", ["x", "w"], "p"), node("Add", ["p", "b"], "s"), node("Mul", ["s", "b"])]
    graph, count = corrected(model_of(shared, ["B", 3, 6], w=weight, b=np.zeros(4)), np.ones((2, 3, 6), np.float32))
    assert count == 0
    assert not value(graph, "b").any()


def test_bias_that_two_operators_share_stays_for_the_other() -> None:
    generator = np.random.default_rng(0)
    nodes = [node("Conv", ["x", "v", "b"], "s"), node("Conv", ["s", "w", "b"])]
    model = model_of(
        nodes,
        ["B", 4, 3, 3],
        v=generator.standard_normal((4, 4, 1, 1)),
        w=generator.standard_normal((4, 4, 1, 1)),
        b=np.zeros(4),
    )
    graph, count = corrected(model, np.ones((2, 4, 3, 3), np.float32))
    names = [one.input[2] for one in graph.graph.node]
    assert count == 2
    assert len(set(names)) == 2
    assert np.abs(value(graph, names[0]) - value(graph, names[1])).max() > 1e-4


@pytest.mark.parametrize("family", ["tiny", "resnet"])
def test_network_comes_nearer_to_float(family: str) -> None:
    model = exported(family, "onnxruntime_x86", int8=False)
    name, data = model.graph.input[0].name, images(320, 0)[0].numpy()
    with OnnxRuntimeRunner(model.SerializeToString()) as runner:
        wanted = next(iter(runner.run({name: data[64:]}).values()))
    found = {}
    for bias_correction in (False, True):
        made = quantize_onnx(
            model,
            [{name: data[:64]}],
            target=target("onnxruntime_x86"),
            calibrator=MinMax(Options()),
            reduce_range=True,
            bias_correction=bias_correction,
        )
        with OnnxRuntimeRunner(made.model.SerializeToString()) as runner:
            found[bias_correction] = sqnr_db(wanted, next(iter(runner.run({name: data[64:]}).values())))
        assert (made.corrected_biases > 0) == bias_correction
    assert found[True] > found[False] + 1.0
