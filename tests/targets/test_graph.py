"""The graph passes, each on graphs written by hand, with ONNX Runtime (nothing optimized) as the judge of meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from ort_graphs import C, H, QdqGraph, residual_network

from edgekd.errors import GateFailed
from edgekd.targets._graph import Graph
from edgekd.targets._graph_passes import (
    absorb_clamps,
    fold_pads,
    quantize_bias,
    remove_dead,
    remove_identities,
    restore_global_pool,
)

Pass = Callable[[Graph], int]


def run(model: onnx.ModelProto, x: np.ndarray | None = None) -> list[np.ndarray]:
    """What the file means: no optimization."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    if x is None:
        x = np.random.default_rng(0).normal(0, 4, (3, C, H, H)).astype(np.float32)
    found: list[np.ndarray] = session.run(None, {"x": x})
    return found


def applied(edit: Pass, model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A pass on a copy, which must stay a valid model of the same meaning; and how much it changed."""
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    changes = edit(Graph(edited))
    onnx.checker.check_model(edited, full_check=True)
    for before, after in zip(run(model), run(edited), strict=True):
        np.testing.assert_array_equal(before, after)
    return edited, changes


def types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# global pool


def mean(axes: Sequence[int], keepdims: int | None = 1, *, as_node: bool = False) -> onnx.ModelProto:
    graph = QdqGraph()
    if as_node:
        graph.op("Constant", [], "axes", value=numpy_helper.from_array(np.array(axes, np.int64)))
    else:
        graph.constant("axes", np.array(axes, np.int64))
    attributes = {} if keepdims is None else {"keepdims": keepdims}
    return graph.model(graph.op("ReduceMean", ["x", "axes"], "y", **attributes))


@pytest.mark.parametrize("axes", [(2, 3), (3, 2), (-2, -1), (-1, -2)])
@pytest.mark.parametrize("keepdims", [1, None])
@pytest.mark.parametrize("as_node", [False, True])
def test_mean_over_height_and_width_becomes_a_global_pool(
    axes: tuple[int, int], keepdims: int | None, as_node: bool
) -> None:
    model = mean(axes, keepdims, as_node=as_node)
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    assert restore_global_pool(Graph(edited)) == 1
    assert types(edited) == ["GlobalAveragePool"]
    onnx.checker.check_model(edited, full_check=True)
    # the same mean, summed in another order
    np.testing.assert_allclose(run(edited)[0], run(model)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("axes", "keepdims"), [((2, 3), 0), ((2,), 1), ((1, 2, 3), 1), ((1, 2), 1), ((0, 1), 1)])
def test_mean_stays_when_it_is_another_one(axes: tuple[int, ...], keepdims: int) -> None:
    edited, changes = applied(restore_global_pool, mean(axes, keepdims))
    assert changes == 0
    assert "ReduceMean" in types(edited)


def test_mean_stays_when_its_axes_are_computed_or_missing() -> None:
    model = mean((2, 3))
    model.graph.initializer[0].name = "stored"
    model.graph.node.insert(0, helper.make_node("Abs", ["stored"], ["axes"]))
    assert restore_global_pool(Graph(model)) == 0
    graph = QdqGraph()
    _, changes = applied(restore_global_pool, graph.model(graph.op("ReduceMean", ["x"], "y")))
    assert changes == 0


# clamps


def clamped(
    op: str, *bounds: float | None, scale: float = 0.05, zero: int = 0, dtype: str = "uint8"
) -> onnx.ModelProto:
    """x through a clamp and a Q/DQ pair."""
    graph = QdqGraph()
    names = ["x"]
    for position, bound in enumerate(bounds):
        names.append("" if bound is None else graph.constant(f"bound{position}", np.float32(bound)))
    return graph.model(graph.pair(graph.op(op, names, "y"), scale=scale, zero=zero, dtype=dtype))


@pytest.mark.parametrize(
    "model",
    [
        clamped("Relu"),
        clamped("Relu", zero=-128, dtype="int8"),
        clamped("Relu", scale=100.0),
        clamped("Clip", 0.0, 6.0, scale=6 / 255),
        clamped("Clip", 0.0, 6.0, scale=4 / 255),
        clamped("Clip", 0.0, 6.0, scale=6 / 255, zero=-128, dtype="int8"),
        clamped("Clip", 0.0),
        clamped("Clip", 0.0, None),
    ],
    ids=["u8", "s8", "coarse", "clip at the bound", "clip inside", "clip s8", "no upper bound", "empty upper bound"],
)
def test_clamp_is_dropped_when_the_quantizer_clamps_as_much(model: onnx.ModelProto) -> None:
    edited, changes = applied(absorb_clamps, model)
    assert changes == 1
    assert types(edited) == ["QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize(
    "model",
    [
        clamped("Relu", zero=1),
        clamped("Relu", zero=0, dtype="int8"),
        clamped("Clip", 0.0, 6.0, scale=0.1),
        clamped("Clip", 0.0, 6.0, scale=6 / 255, zero=3),
        clamped("Clip", -1.0, 6.0, scale=6 / 255),
        clamped("Clip", 0.5, 6.0, scale=6 / 255),
        clamped("Clip", None, 6.0, scale=6 / 255),
    ],
    ids=["u8 zp 1", "s8 zp 0", "wider", "zp 3", "low -1", "low 0.5", "no lower bound"],
)
def test_clamp_stays_when_the_quantizer_clamps_less(model: onnx.ModelProto) -> None:
    edited, changes = applied(absorb_clamps, model)
    assert changes == 0
    assert len(types(edited)) == 3


def test_clip_at_the_bound_is_dropped_for_every_bound_s_rounded_scale() -> None:
    # scale = float32(bound / 255): times 255 it may land a rounding error above the bound
    for bound in np.linspace(0.5, 8.0, 100).astype(np.float32):
        model = clamped("Clip", 0.0, float(bound), scale=float(np.float32(bound) / np.float32(255)))
        edited = onnx.ModelProto()
        edited.CopyFrom(model)
        assert absorb_clamps(Graph(edited)) == 1


def test_relu_stays_when_it_is_an_output_of_the_graph() -> None:
    graph = QdqGraph()
    relu = graph.op("Relu", ["x"], "y")
    _, changes = applied(absorb_clamps, graph.model(graph.pair(relu), relu))
    assert changes == 0


def test_relu_stays_when_another_reader_needs_it() -> None:
    graph = QdqGraph()
    relu = graph.op("Relu", ["x"], "y")
    _, changes = applied(absorb_clamps, graph.model(graph.pair(relu), graph.op("Neg", [relu], "n")))
    assert changes == 0


def test_relu_is_dropped_when_all_its_readers_are_quantizers_that_do_its_work() -> None:
    graph = QdqGraph()
    relu = graph.op("Relu", ["x"], "y")
    first = graph.pair(relu)
    graph.constant("s", np.float32(0.1))
    graph.constant("z", np.uint8(0))
    graph.op("QuantizeLinear", [relu, "s", "z"], "q2")
    second = graph.op("DequantizeLinear", ["q2", "s", "z"], "dq2")
    edited, changes = applied(absorb_clamps, graph.model(first, second))
    assert changes == 1
    assert "Relu" not in types(edited)
    graph.op("QuantizeLinear", [relu, "s", graph.constant("z7", np.uint8(7))], "q3")
    third = graph.op("DequantizeLinear", ["q3", "s", "z7"], "dq3")
    _, changes = applied(absorb_clamps, graph.model(first, second, third))
    assert changes == 0


def test_relu_stays_when_scale_or_zero_point_are_computed_or_many() -> None:
    graph = QdqGraph()
    relu = graph.op("Relu", ["x"], "y")
    _, changes = applied(absorb_clamps, graph.model(graph.pair(relu, scale=[0.1] * C, zero=[0] * C)))
    assert changes == 0
    graph = QdqGraph()
    graph.constant("raw", np.float32(-0.1))
    graph.op("Abs", ["raw"], "scale")
    graph.op("QuantizeLinear", [graph.op("Relu", ["x"], "y"), "scale", graph.constant("z", np.uint8(0))], "q")
    _, changes = applied(absorb_clamps, graph.model(graph.op("DequantizeLinear", ["q", "scale", "z"], "dq")))
    assert changes == 0


# int32 bias


def convolution(
    bias: Any, *, scale: float = 0.5, weight_scale: Any = 0.25, name: str = "conv", pads: int = 1
) -> onnx.ModelProto:
    """Conv with int8 weights of `weight_scale` (one, or one per channel) on x quantized with `scale`."""
    graph = QdqGraph()
    codes = np.random.default_rng(1).integers(-127, 127, (C, C, 3, 3)).astype(np.int8)
    graph.constant("w_q", codes)
    graph.constant("w_s", np.asarray(weight_scale, np.float32))
    axis = {"axis": 0} if np.ndim(weight_scale) else {}
    graph.op("DequantizeLinear", ["w_q", "w_s"], "w", **axis)
    source = graph.pair("x", scale=scale, zero=128)
    graph.constant("b", np.asarray(bias, np.float32))
    graph.op("Conv", [source, "w", "b"], "y", pads=[pads] * 4)
    graph.nodes[-1].name = name
    return graph.model("y")


def bias_codes(model: onnx.ModelProto, output: str = "y") -> tuple[np.ndarray, np.ndarray]:
    """Codes and scale of the bias of the node that makes `output`."""
    graph = Graph(model)
    node = graph.producer(output)
    assert node is not None
    dequantize = graph.producer(node.input[2])
    assert dequantize is not None
    assert dequantize.op_type == "DequantizeLinear"
    codes, scale, zero = (graph.value(name) for name in dequantize.input)
    assert codes is not None
    assert scale is not None
    assert zero is not None
    assert codes.dtype == zero.dtype == np.int32
    assert not zero.any()
    return codes, scale


def test_bias_codes_are_the_bias_over_the_product_of_scales() -> None:
    # 0.5 * 0.25 = 0.125
    bias = [0.0, 0.125, -0.125, 1.0, 0.06, 0.07, -100.0, 12.5]
    model = convolution(bias, weight_scale=[0.25] * C)
    assert quantize_bias(Graph(model)) == 1
    codes, scale = bias_codes(model)
    assert codes.tolist() == [0, 1, -1, 8, 0, 1, -800, 100]
    assert scale.tolist() == [0.125] * C
    onnx.checker.check_model(model, full_check=True)


def test_each_channel_has_a_scale_of_its_own() -> None:
    scales = [2.0**-k for k in range(C)]
    model = convolution([1.0] * C, weight_scale=scales)
    quantize_bias(Graph(model))
    codes, scale = bias_codes(model)
    assert scale.tolist() == [0.5 * value for value in scales]
    assert codes.tolist() == [2 * 2**k for k in range(C)]


def test_bias_scale_is_a_scalar_when_the_weight_has_one_scale() -> None:
    model = convolution([0.125] * C)
    quantize_bias(Graph(model))
    codes, scale = bias_codes(model)
    assert scale.shape == ()
    assert codes.tolist() == [1] * C
    onnx.checker.check_model(model, full_check=True)


def test_outputs_stay_exactly_when_the_bias_is_on_the_grid() -> None:
    on_grid = np.arange(-4, 4) * 0.125
    _, changes = applied(quantize_bias, convolution(on_grid, weight_scale=[0.25] * C))
    assert changes == 1


def test_outputs_move_by_half_a_step_at_most_when_the_bias_is_off_the_grid() -> None:
    model = convolution(np.random.default_rng(0).normal(0, 1, C), weight_scale=[0.25] * C)
    before = run(model)[0]
    quantize_bias(Graph(model))
    assert 0 < np.abs(run(model)[0] - before).max() <= 0.125 / 2 + 1e-4


def test_bias_is_refused_when_it_does_not_fit_int32() -> None:
    model = convolution([1.0] * C, scale=1e-5, weight_scale=[1e-5] * C, name="deep")
    with pytest.raises(GateFailed, match=r"bias of 'deep' does not fit int32 at scale 1e-10.*keep the layer in float"):
        quantize_bias(Graph(model))
    # 2^31 - 128 is the last float32 that fits
    quantize_bias(Graph(convolution([0.0] * 7 + [2147483520 * 2.0**-40], scale=2.0**-20, weight_scale=[2.0**-20] * C)))


def test_bias_of_two_convolutions_is_quantized_for_each() -> None:
    graph = QdqGraph()
    bias = graph.constant("b", np.full(C, 1.0, np.float32))
    weight = graph.stored("w", (C, C, 3, 3), scale=0.25)
    first = graph.conv(graph.pair("x", scale=0.5, zero=128), "y1", weight=weight, bias=bias)
    graph.conv(graph.pair(first, scale=2.0, zero=128), "y2", weight=weight, bias=bias)
    for node in graph.nodes:
        node.name = ""  # names of nodes are optional in ONNX
    edited, changes = applied(quantize_bias, graph.model("y1", "y2"))
    assert changes == 2
    assert bias_codes(edited, "y1")[0].tolist() == [8] * C
    assert bias_codes(edited, "y2")[0].tolist() == [2] * C


def test_names_stay_unique_when_the_graph_already_uses_them() -> None:
    graph = QdqGraph()
    graph.constant("y_bias", np.full(C, 1.0, np.float32))
    weight = graph.stored("w", (C, C, 3, 3), scale=0.25)
    graph.conv(graph.pair("x", scale=0.5, zero=128), "y", weight=weight, bias="y_bias")
    edited, _ = applied(quantize_bias, graph.model("y"))
    assert bias_codes(edited)[0].tolist() == [8] * C


def gemm(**attributes: Any) -> onnx.ModelProto:
    graph = QdqGraph()
    flat = graph.op("Flatten", [graph.pair("x", scale=0.5, zero=128)], "f")
    weight = graph.stored("w", (4, C * H * H), scale=0.25)
    graph.constant("b", np.array([0.125, 1.0, -1.0, 0.0], np.float32))
    return graph.model(graph.op("Gemm", [flat, weight, "b"], "y", transB=1, **attributes))


def test_fully_connected_layer_gets_an_int32_bias_when_its_data_is_dequantized_right_before() -> None:
    graph = QdqGraph()
    flat = graph.pair(graph.op("Flatten", ["x"], "f"), scale=0.5, zero=128)
    weight = graph.stored("w", (4, C * H * H), scale=0.25)
    graph.constant("b", np.array([0.125, 1.0, -1.0, 0.0], np.float32))
    edited, changes = applied(quantize_bias, graph.model(graph.op("Gemm", [flat, weight, "b"], "y", transB=1)))
    assert changes == 1
    assert bias_codes(edited)[0].tolist() == [1, 8, -8, 0]


def test_bias_stays_when_something_stands_between_data_and_operator() -> None:
    assert applied(quantize_bias, gemm())[1] == 0


@pytest.mark.parametrize("attribute", ["alpha", "beta"])
def test_bias_stays_when_the_product_is_scaled(attribute: str) -> None:
    graph = QdqGraph()
    flat = graph.pair(graph.op("Flatten", ["x"], "f"), scale=0.5, zero=128)
    weight = graph.stored("w", (4, C * H * H), scale=0.25)
    graph.constant("b", np.ones(4, np.float32))
    model = graph.model(graph.op("Gemm", [flat, weight, "b"], "y", transB=1, **{attribute: 0.5}))
    assert applied(quantize_bias, model)[1] == 0


def test_bias_stays_when_it_is_quantized_already_or_missing_or_the_weight_is_float() -> None:
    assert applied(quantize_bias, residual_network())[1] == 0
    graph = QdqGraph()
    graph.op("Conv", [graph.pair("x"), graph.stored("w", (C, C, 3, 3))], "y")
    assert applied(quantize_bias, graph.model("y"))[1] == 0
    graph = QdqGraph()
    graph.op("Conv", [graph.pair("x"), graph.real("w", (C, C, 3, 3)), graph.real("b", (C,))], "y")
    assert applied(quantize_bias, graph.model("y"))[1] == 0


# identities and what is dead


@pytest.mark.parametrize("op", ["Identity", "Dropout"])
def test_identity_in_the_middle_is_removed(op: str) -> None:
    graph = QdqGraph()
    model = graph.model(graph.op("Neg", [graph.op(op, [graph.op("Abs", ["x"], "a")], "i")], "y"))
    edited, changes = applied(remove_identities, model)
    assert changes == 1
    assert types(edited) == ["Abs", "Neg"]


def test_identity_at_the_output_is_removed_and_the_output_keeps_its_name() -> None:
    graph = QdqGraph()
    model = graph.model(graph.op("Identity", [graph.op("Abs", ["x"], "a")], "y"), graph.op("Neg", ["a"], "n"))
    edited, _ = applied(remove_identities, model)
    assert sorted(types(edited)) == ["Abs", "Neg"]
    assert [value.name for value in edited.graph.output] == ["y", "n"]


def test_identity_from_input_to_output_stays() -> None:
    graph = QdqGraph()
    edited, _ = applied(remove_identities, graph.model(graph.op("Identity", ["x"], "y")))
    assert types(edited) == ["Identity"]


def test_identity_between_two_outputs_stays() -> None:
    graph = QdqGraph()
    first = graph.op("Abs", ["x"], "a")
    edited, _ = applied(remove_identities, graph.model(first, graph.op("Identity", [first], "y")))
    assert [value.name for value in edited.graph.output] == ["a", "y"]


def test_chain_of_identities_disappears() -> None:
    graph = QdqGraph()
    name = graph.op("Abs", ["x"], "a")
    for index in range(3):
        name = graph.op("Identity", [name], f"i{index}")
    edited, changes = applied(remove_identities, graph.model(name))
    assert changes == 3
    assert types(edited) == ["Abs"]


def test_dead_nodes_constants_and_shapes_are_removed() -> None:
    graph = QdqGraph()
    graph.real("unused", (4,))
    graph.op("Neg", [graph.op("Exp", ["x"], "dead1")], "dead2")
    graph.constant("also_unused", np.float32(1))
    graph.op("Add", ["dead2", "also_unused"], "dead3")
    edited, changes = applied(remove_dead, graph.model(graph.op("Abs", ["x"], "y")))
    assert changes == 3
    assert types(edited) == ["Abs"]
    assert list(edited.graph.initializer) == []
    assert {value.name for value in edited.graph.value_info} <= {"y"}


def test_nothing_is_removed_when_everything_is_read() -> None:
    model = residual_network()
    edited, changes = applied(remove_dead, model)
    assert changes == 0
    assert edited.graph.node == model.graph.node


# the graph itself


def test_constant_nodes_are_read_as_constants() -> None:
    value = numpy_helper.from_array(np.array([1.5], np.float32))
    nodes = [helper.make_node("Constant", [], ["c"], value=value), helper.make_node("Add", ["x", "c"], ["y"])]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", C, H, H]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", tensors[:1], tensors[1:]), opset_imports=[helper.make_opsetid("", 20)]
    )
    graph = Graph(model)
    assert graph.value("c") == pytest.approx([1.5])
    assert graph.value("x") is None
    assert types(model) == ["Add"]


def test_new_constants_keep_their_shape_and_get_free_names() -> None:
    graph = Graph(residual_network())
    first = graph.add_constant("k", np.float32(2.0))
    second = graph.add_constant("k", np.ones((2, 3), np.int32))
    assert (first, second) == ("k", "k_1")
    assert [graph.value(name).shape for name in (first, second)] == [(), (2, 3)]  # type: ignore[union-attr]
    assert graph.free_name("x") == "x_1"  # an input
    assert graph.free_name("c1") == "c1_1"  # a node's output


def padded(
    *, value: float = 0.0, pair: str = "same", amounts: Sequence[int] = (0, 0, 0, 0, 0, 0, 1, 1)
) -> onnx.ModelProto:
    """x -> Q/DQ -> Pad -> (Q/DQ) -> Conv, as a network with padding of its own is exported."""
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.1),
        "other": np.float32(0.2),
        "zero": np.uint8(128),
        "amounts": np.array(amounts, np.int64),
        "value": np.float32(value),
        "w": rng.normal(size=(C, C + amounts[1] + amounts[5], 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("Pad", ["dq", "amounts", "value"], ["padded"]),
    ]
    data = "padded"
    if pair != "none":
        grid = "scale" if pair == "same" else "other"
        nodes.append(helper.make_node("QuantizeLinear", [data, grid, "zero"], ["q2"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q2", grid, "zero"], ["dq2"]))
        data = "dq2"
    nodes.append(helper.make_node("Conv", [data, "w"], ["y"], strides=[2, 2], pads=[1, 0, 0, 0]))
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    shape = ["B", C, H, H]
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", C, None, None])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("pair", ["same", "none"])
def test_padding_by_zeros_joins_the_convolution_and_changes_nothing(pair: str):
    before = padded(pair=pair)
    after, changed = applied(fold_pads, before)
    assert changed == 1
    assert [node.op_type for node in after.graph.node] == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    pads = next(list(a.ints) for a in after.graph.node[-1].attribute if a.name == "pads")
    assert pads == [1, 0, 1, 1]
    np.testing.assert_array_equal(run(before)[0], run(after)[0])


@pytest.mark.parametrize(
    "unlike",
    [{"value": 1.0}, {"pair": "other"}, {"amounts": (0, 1, 0, 0, 0, 0, 0, 0)}, {"amounts": (0, 0, -1, 0, 0, 0, 1, 1)}],
    ids=["not zero", "another grid", "channels", "cut off"],
)
def test_other_padding_stays(unlike: dict[str, Any]):
    model = padded(**unlike)
    _, changed = applied(fold_pads, model)
    assert changed == 0
