"""Operator times from real recordings."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from ort_graphs import QdqGraph, residual_network

from edgekd.targets._profile import OperatorTime, profile_operators, slow_operators

FEEDS = {"x": np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)}


def test_every_operator_is_timed_when_a_model_is_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "model.onnx"
    onnx.save(residual_network(), path)
    times = profile_operators(path, FEEDS, runs=5)
    kinds = {one.op: one.int8 for one in times}
    assert kinds["QLinearConv"]
    assert kinds["QLinearAdd"]
    assert not kinds["QuantizeLinear"]
    assert not kinds["DequantizeLinear"]
    assert sum(one.share for one in times) == pytest.approx(1.0)
    assert [one.mean_us for one in times] == sorted((one.mean_us for one in times), reverse=True)
    assert {one.provider for one in times} == {"CPUExecutionProvider"}
    assert {"node_c1", "node_c2", "node_a"} <= {one.name for one in times}
    assert list(tmp_path.iterdir()) == [path]  # the recording is gone


def test_unnamed_node_is_called_by_its_type_and_output_when_profiled() -> None:
    model = residual_network()
    for node in model.graph.node:
        node.name = ""
    assert "Conv_c1" in {one.name for one in profile_operators(model.SerializeToString(), FEEDS, runs=1)}


def test_float_island_is_not_int8_when_profiled() -> None:
    graph = QdqGraph()
    relu = graph.pair(graph.op("Relu", [graph.conv(graph.pair("x"), "c")], "r"), zero=128)
    joined = graph.pair(graph.op("Concat", [relu, relu], "j", axis=1))
    times = profile_operators(graph.model(joined).SerializeToString(), FEEDS, runs=3)
    kinds = {one.op: one.int8 for one in times}
    assert kinds["QLinearConcat"]
    convolutions = [one for one in times if "Conv" in one.op]
    assert [one.int8 for one in convolutions] == [False]
    assert any("Conv" in line for line in slow_operators(times, limit=20))


def test_slow_operators_are_the_float_ones_when_listed() -> None:
    times = [
        OperatorTime("a", "QLinearConv", "CPUExecutionProvider", 60.0, 0.6, True),
        OperatorTime("b", "HardSwish", "CPUExecutionProvider", 10.0, 0.1, False),
        OperatorTime("c", "Conv", "CPUExecutionProvider", 30.0, 0.3, False),
    ]
    assert slow_operators(times) == ["Conv 'c': 30 us, 30.0%", "HardSwish 'b': 10 us, 10.0%"]
    assert slow_operators(times, limit=1) == ["Conv 'c': 30 us, 30.0%"]
