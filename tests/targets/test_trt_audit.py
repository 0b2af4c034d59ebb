"""The TensorRT audit: what is fed by int8 pairs, what is not, and what TensorRT refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from qdq_graphs import CHANNELS, Graph, float_net, residual_net

from edgekd.errors import BackendMissing
from edgekd.targets._base import Audit
from edgekd.targets._float16 import to_float16
from edgekd.targets._trt_audit import trt_audit
from edgekd.targets._trt_library import trt_library
from edgekd.targets._trt_rules import refusals

try:
    trt_library()
except BackendMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = pytest.mark.tensorrt


def _audit(folder: Path, model: onnx.ModelProto) -> Audit:
    onnx.save(model, folder / "model.onnx")
    return trt_audit(folder / "model.onnx")


@pytest.mark.parametrize("half", [False, True])
def test_coverage_is_one_when_every_weighted_operator_has_its_pairs(tmp_path: Path, half: bool) -> None:
    audit = _audit(tmp_path, to_float16(residual_net()) if half else residual_net())

    # two convolutions, the residual add and the classifier
    assert (audit.quantizable, audit.int8, audit.islands) == (4, 4, ())
    assert audit.legitimate == {"POOLING": 1, "REDUCE": 1}
    assert audit.operators["CONVOLUTION"] == 2


def test_convolution_is_an_island_when_the_model_is_float(tmp_path: Path) -> None:
    audit = _audit(tmp_path, float_net())

    assert (audit.quantizable, audit.int8, audit.coverage) == (1, 0, 0.0)
    assert audit.islands[0].op == "Conv"
    assert "without a DequantizeLinear" in audit.islands[0].cause
    assert "target tensorrt" in audit.islands[0].remedy


def test_convolution_is_an_island_when_its_data_has_no_pair(tmp_path: Path) -> None:
    graph = Graph()
    audit = _audit(tmp_path, graph.model(graph.conv(graph.node("Relu", "x"))))
    assert "its data input 'relu0_out' comes from ACTIVATION 'relu0' without a Q/DQ pair" in audit.islands[0].cause


def test_convolution_is_an_island_when_scales_are_not_along_output_channels(tmp_path: Path) -> None:
    graph = Graph()
    weights = graph.weights(CHANNELS, CHANNELS, 1, 1, axis=1)
    audit = _audit(tmp_path, graph.model(graph.node("Conv", graph.pair("x"), weights)))
    assert "along axis 1" in audit.islands[0].cause


@pytest.mark.parametrize(
    ("op", "shape", "axis", "attributes", "int8"),
    [
        ("Gemm", (5, CHANNELS), 0, {"transB": 1}, 1),
        ("Gemm", (CHANNELS, 5), 1, {}, 1),
        ("MatMul", (CHANNELS, 5), 1, {}, 1),
        ("MatMul", (CHANNELS, 5), 0, {}, 0),
    ],
)
def test_matrix_product_is_int8_when_scales_are_along_its_columns(
    tmp_path: Path, op: str, shape: tuple[int, int], axis: int, attributes: dict[str, Any], int8: int
) -> None:
    graph = Graph()
    product = graph.node(op, graph.pair("x"), graph.weights(*shape, axis=axis), **attributes)
    audit = _audit(tmp_path, graph.model(product, shape=("B", CHANNELS)))
    assert (audit.quantizable, audit.int8) == (1, int8)


@pytest.mark.parametrize("on_skip", [True, False])
def test_residual_add_is_int8_when_its_skip_has_a_pair(tmp_path: Path, on_skip: bool) -> None:
    graph = Graph()
    skip = graph.node("Relu", "x")
    y = graph.node("Add", graph.conv(graph.pair(skip)), graph.pair(skip) if on_skip else skip)
    audit = _audit(tmp_path, graph.model(y))
    assert [(island.op, "skip input" in island.remedy) for island in audit.islands] == (
        [] if on_skip else [("Add", True)]
    )


def test_data_is_followed_through_pooling_and_concatenation(tmp_path: Path) -> None:
    graph = Graph()
    half = CHANNELS // 2
    top = graph.node("MaxPool", graph.pair("x"), kernel_shape=[2, 2], strides=[2, 2])
    y = graph.node("Concat", top, top, axis=1)
    y = graph.node("Conv", y, graph.weights(half, 2 * CHANNELS, 1, 1))
    assert _audit(tmp_path, graph.model(y)).coverage == 1.0


@pytest.mark.parametrize(
    ("zero", "cause"),
    [
        (np.int8(-128), "has zero-point -128; TensorRT takes only 0"),
        (np.uint8(128), "has uint8 codes; TensorRT has signed int8 only"),
        # the parser takes this one and clips every code above 127
        (np.uint8(0), "has uint8 codes; TensorRT has signed int8 only"),
    ],
)
def test_refusal_is_told_once_and_named_after_the_operator(tmp_path: Path, zero: Any, cause: str) -> None:
    graph = Graph()
    audit = _audit(tmp_path, graph.model(graph.conv(graph.pair("x", zero=zero))))

    assert (audit.quantizable, audit.int8) == (1, 0)
    assert [(island.name, island.op) for island in audit.islands] == [("conv3", "Conv")]
    assert cause in audit.islands[0].cause


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_is_refused_when_not_positive_and_finite(scale: float) -> None:
    graph = Graph()
    found = refusals(graph.model(graph.conv(graph.pair("x", scale=scale))))
    assert len(found) == 1
    assert f"has scale {scale}" in found[0].cause


def test_zero_point_may_be_left_out_only_where_onnx_means_int8() -> None:
    graph = Graph()
    codes = graph.constant(np.ones((4, CHANNELS, 1, 1), np.int8))
    weights = graph.node("DequantizeLinear", codes, graph.constant(np.float32(0.1)))
    assert refusals(graph.model(graph.node("Conv", graph.pair("x"), weights))) == []

    # a QuantizeLinear without a zero-point makes uint8
    quantized = graph.node("QuantizeLinear", "x", graph.constant(np.float32(0.1)))
    assert "uint8" in refusals(graph.model(graph.node("DequantizeLinear", quantized, "c3")))[0].cause
