"""The fusion audit against what ONNX Runtime really does with small graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from ort_graphs import C, QdqGraph, residual_network

from edgekd.errors import ModelFileError
from edgekd.targets._audit import audit_onnxruntime, has_quantizers
from edgekd.targets._base import Audit

Draw = Callable[[QdqGraph, str], onnx.ModelProto]


def audit(model: onnx.ModelProto, folder: Path, *, asked_int8: bool = True, int8_activations: bool = False) -> Audit:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return audit_onnxruntime(path, target="onnxruntime_x86", asked_int8=asked_int8, int8_activations=int8_activations)


def test_everything_is_int8_when_the_graph_follows_the_rules(tmp_path: Path) -> None:
    found = audit(residual_network(), tmp_path)
    # c1, c2, add, max pool, global pool, flatten, gemm; the two ReLUs belong to what is before them
    assert (found.quantizable, found.int8, found.coverage) == (7, 7, 1.0)
    assert found.islands == ()
    assert found.legitimate == {}
    assert found.operators["QLinearConv"] == 2
    assert found.operators["QLinearAdd"] == 1


def test_signed_activations_are_int8_when_audited_as_on_arm(tmp_path: Path) -> None:
    found = audit(residual_network(dtype="int8", zero=-128), tmp_path, int8_activations=True)
    assert found.coverage == 1.0


def test_shared_signed_activation_is_named_when_audited_on_x86(tmp_path: Path) -> None:
    found = audit(residual_network(dtype="int8", zero=-128), tmp_path)
    assert {island.op for island in found.islands} == {"Conv", "Add"}
    assert all("makes signed activations unsigned" in island.cause for island in found.islands)


def test_nothing_is_quantizable_when_int8_was_not_asked(tmp_path: Path) -> None:
    graph = QdqGraph()
    model = graph.model(graph.conv("x", "y", weight=graph.real("w", (C, C, 3, 3)), bias=graph.real("b", (C,))))
    assert not has_quantizers(model)
    found = audit(model, tmp_path, asked_int8=False)
    assert (found.quantizable, found.coverage, found.islands) == (0, 1.0, ())


def test_float_file_is_named_when_int8_was_asked(tmp_path: Path) -> None:
    graph = QdqGraph()
    model = graph.model(graph.conv("x", "y", weight=graph.real("w", (C, C, 3, 3)), bias=graph.real("b", (C,))))
    found = audit(model, tmp_path)
    assert found.coverage == 0.0
    assert found.islands[0].cause == "the file has no Q/DQ nodes"
    assert "edgekd quantize" in found.islands[0].remedy


def _no_output_q(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.op("HardSwish", [graph.conv(x, "c")], "y"))


def _relu_zero_point(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.pair(graph.op("Relu", [graph.conv(x, "c")], "r"), zero=128))


def _relu6_range(graph: QdqGraph, x: str) -> onnx.ModelProto:
    low, high = graph.constant("low", np.float32(0)), graph.constant("high", np.float32(6))
    return graph.model(graph.pair(graph.op("Clip", [graph.conv(x, "c"), low, high], "r"), scale=0.1))


def _float_weight(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.pair(graph.conv(x, "c", weight=graph.real("w", (C, C, 3, 3)))))


def _signed_input_unsigned_weight(graph: QdqGraph, x: str) -> onnx.ModelProto:
    signed = graph.pair(graph.op("Relu", [x], "s"), dtype="int8", zero=-128)
    weight = graph.stored("w", (C, C, 3, 3), dtype="uint8", zero=128)
    return graph.model(graph.pair(graph.conv(signed, "c", weight=weight), dtype="int8"))


def _float_bias_and_output(graph: QdqGraph, x: str) -> onnx.ModelProto:
    flat = graph.pair(graph.op("Flatten", [graph.pair(graph.op("GlobalAveragePool", [x], "g"))], "f"))
    return graph.model(graph.gemm(flat, "y", features=C, bias=graph.real("b", (4,))))


def _reduce_mean(graph: QdqGraph, x: str) -> onnx.ModelProto:
    axes = graph.constant("axes", np.array([2, 3], np.int64))
    return graph.model(graph.pair(graph.op("ReduceMean", [x, axes], "g", keepdims=1)))


def _float_skip(graph: QdqGraph, x: str) -> onnx.ModelProto:
    skip = graph.op("HardSwish", [x], "skip")
    return graph.model(graph.pair(graph.op("Add", [graph.pair(graph.conv(x, "c")), skip], "a")))


def _bare_flatten(graph: QdqGraph, x: str) -> onnx.ModelProto:
    flat = graph.op("Flatten", [graph.pair(graph.op("GlobalAveragePool", [x], "g"))], "f")
    return graph.model(graph.pair(graph.gemm(flat, "y", features=C)))


def _pool_parameters(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.pair(graph.op("MaxPool", [x], "m", kernel_shape=[2, 2]), scale=0.07))


def _output_also_in_float(graph: QdqGraph, x: str) -> onnx.ModelProto:
    convolved = graph.conv(x, "c")
    return graph.model(graph.pair(convolved), graph.op("HardSwish", [convolved], "h"))


def _lone_relu(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.pair(graph.op("Relu", [graph.pair(graph.conv(x, "c"), zero=128)], "r"), zero=128))


def _channel_scales(graph: QdqGraph, x: str) -> onnx.ModelProto:
    spread = graph.pair(graph.op("HardSwish", [x], "s"), scale=np.full(C, 0.05), zero=np.zeros(C))
    return graph.model(graph.pair(graph.conv(spread, "c")))


def _mixed_types(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.pair(graph.conv(x, "c"), dtype="int16"))


def _unquantized_input(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.pair(graph.conv("x", "c")), graph.op("HardSwish", [x], "h"))


def _float_constant(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.pair(graph.op("Mul", [x, graph.real("k", (1,))], "m")))


def _bias_type(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.pair(graph.conv(x, "c", bias=graph.stored("b", (C,), dtype="int8"))))


ISLANDS = [
    (_bias_type, "Conv", r"its bias 'b' is int8"),
    (_no_output_q, "Conv", r"no Q on its output 'c', which goes in float to HardSwish 'node_y'"),
    (_relu_zero_point, "Conv", r"ReLU behind it cannot fold: the zero-point of its Q is 128, not 0"),
    (_relu6_range, "Conv", r"Clip \[0, 6\] behind it cannot fold: its Q reaches from 0 to 25.5"),
    (_float_weight, "Conv", r"its weight 'w' is float"),
    (_signed_input_unsigned_weight, "Conv", r"its weight 'w' is uint8 and its input int8"),
    (_float_bias_and_output, "Gemm", r"its bias 'b' is float and there is no Q on its output"),
    (_reduce_mean, "ReduceMean", r"ReduceMean has no int8 kernel"),
    (_float_skip, "Add", r"its input 'skip' comes in float from HardSwish"),
    (_bare_flatten, "Gemm", r"comes from Flatten 'node_f', which has no Q/DQ pair behind it"),
    (_pool_parameters, "MaxPool", r"Q/DQ parameters before and behind it differ"),
    (_output_also_in_float, "Conv", r"its output 'c' goes to a Q and in float to HardSwish"),
    (_lone_relu, "Relu", r"a Q/DQ pair stands between it and Conv 'node_c'"),
    (_channel_scales, "Conv", r"the activation 's_dq' has a scale per channel"),
    (_mixed_types, "Conv", r"the activation 'c_q' is int16"),
    (_unquantized_input, "Conv", r"its input 'x' is a float model input"),
    (_float_constant, "Mul", r"its input 'k' is a float constant"),
]


@pytest.mark.parametrize(("draw", "op", "cause"), ISLANDS, ids=[case[0].__name__[1:] for case in ISLANDS])
def test_island_has_its_cause_when_a_rule_is_broken(draw: Draw, op: str, cause: str, tmp_path: Path) -> None:
    graph = QdqGraph(opset=21 if draw is _mixed_types else 20)
    found = audit(draw(graph, graph.pair("x")), tmp_path, int8_activations=draw is _signed_input_unsigned_weight)
    islands = [island for island in found.islands if island.op == op]
    assert len(islands) == 1, found
    assert found.int8 == found.quantizable - len(found.islands)
    with pytest.raises(AssertionError, match=cause):
        raise AssertionError(islands[0].cause)
    assert islands[0].remedy


def _conv_float_bias(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.pair(graph.conv(x, "c", bias=graph.real("b", (C,)))))


def _relu6_inside(graph: QdqGraph, x: str) -> onnx.ModelProto:
    low, high = graph.constant("low", np.float32(0)), graph.constant("high", np.float32(6))
    return graph.model(graph.pair(graph.op("Clip", [graph.conv(x, "c"), low, high], "r"), scale=6 / 255))


def _gemm_float_out(graph: QdqGraph, x: str) -> onnx.ModelProto:
    flat = graph.pair(graph.op("Flatten", [graph.pair(graph.op("GlobalAveragePool", [x], "g"))], "f"))
    return graph.model(graph.gemm(flat, "y", features=C))


def _matmul_and_bias(graph: QdqGraph, x: str) -> onnx.ModelProto:
    flat = graph.pair(graph.op("Flatten", [graph.pair(graph.op("GlobalAveragePool", [x], "g"))], "f"))
    weight = graph.real("w", (C, 4))
    product = graph.op("MatMul", [flat, graph.pair(weight, dtype="int8")], "p")
    return graph.model(graph.pair(graph.op("Add", [product, graph.real("b", (4,))], "s"), zero=128))


def _silu(graph: QdqGraph, x: str) -> onnx.ModelProto:
    convolved = graph.pair(graph.conv(x, "c"), zero=128)
    gate = graph.pair(graph.op("Sigmoid", [convolved], "g"), scale=1 / 256)
    return graph.model(graph.pair(graph.op("Mul", [convolved, gate], "m"), zero=10))


def _concat(graph: QdqGraph, x: str) -> onnx.ModelProto:
    left, right = graph.pair(graph.conv(x, "c"), scale=0.02), graph.pair(graph.conv(x, "d"))
    return graph.model(graph.pair(graph.op("Concat", [left, right], "j", axis=1)))


def _average_pool(graph: QdqGraph, x: str) -> onnx.ModelProto:
    return graph.model(graph.pair(graph.op("AveragePool", [x], "p", kernel_shape=[2, 2]), scale=0.04))


def _leaky_and_softmax(graph: QdqGraph, x: str) -> onnx.ModelProto:
    leaky = graph.pair(graph.op("LeakyRelu", [x], "l", alpha=0.1), zero=20)
    return graph.model(graph.pair(graph.op("Softmax", [leaky], "s", axis=1), scale=1 / 256))


KERNELS = [
    (_conv_float_bias, "QLinearConv", 1),
    (_relu6_inside, "QLinearConv", 1),
    (_gemm_float_out, "QGemm", 3),
    (_matmul_and_bias, "QGemm", 3),  # the addition of the bias becomes part of the product
    (_silu, "QLinearSigmoid", 3),
    (_concat, "QLinearConcat", 3),
    (_average_pool, "QLinearAveragePool", 1),
    (_leaky_and_softmax, "QLinearLeakyRelu", 2),
]


@pytest.mark.parametrize(("draw", "kernel", "count"), KERNELS, ids=[case[0].__name__[1:] for case in KERNELS])
def test_operator_is_int8_when_the_runtime_has_a_kernel(draw: Draw, kernel: str, count: int, tmp_path: Path) -> None:
    graph = QdqGraph()
    found = audit(draw(graph, graph.pair("x")), tmp_path)
    assert found.islands == ()
    assert (found.quantizable, found.int8) == (count, count)
    assert kernel in found.operators


def test_operator_without_kernel_is_legitimate_when_left_in_float(tmp_path: Path) -> None:
    graph = QdqGraph()
    swish = graph.pair(graph.op("HardSwish", [graph.pair(graph.conv(graph.pair("x"), "c"), zero=128)], "h"), zero=10)
    found = audit(graph.model(graph.pair(graph.conv(swish, "d"))), tmp_path)
    assert found.legitimate == {"HardSwish": 1}
    assert (found.quantizable, found.coverage) == (2, 1.0)


def test_float_softmax_does_not_count_when_nothing_quantized_follows(tmp_path: Path) -> None:
    graph = QdqGraph()
    found = audit(graph.model(graph.op("Softmax", [graph.pair(graph.conv(graph.pair("x"), "c"))], "y")), tmp_path)
    assert (found.quantizable, found.coverage) == (1, 1.0)
    assert found.legitimate == {"Softmax": 1}


def test_weights_in_another_file_change_nothing_when_audited(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(residual_network(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    found = audit_onnxruntime(path, target="onnxruntime_x86", asked_int8=True)
    assert (found.quantizable, found.int8) == (7, 7)


def test_names_change_nothing_when_they_lie_or_are_missing(tmp_path: Path) -> None:
    graph = QdqGraph()
    model = _relu_zero_point(graph, graph.pair("x"))
    for node in model.graph.node:
        node.name = "QLinearConv_int8" if node.op_type == "Conv" else ""
    found = audit(model, tmp_path)
    assert (found.quantizable, found.int8) == (1, 0)
    assert found.islands[0].name == "QLinearConv_int8"


def test_audit_refuses_when_the_runtime_does(tmp_path: Path) -> None:
    graph = QdqGraph()
    model = graph.model(graph.op("Relu", ["x"], "y"))
    model.graph.node[0].domain = "not.a.domain"
    model.opset_import.append(onnx.helper.make_opsetid("not.a.domain", 1))
    with pytest.raises(ModelFileError, match=r"ONNX Runtime refuses the model: .*not\.a\.domain"):
        audit(model, tmp_path)
