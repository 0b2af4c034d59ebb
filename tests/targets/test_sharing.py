"""Equal constants become one, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from int8_models import exported
from onnx import numpy_helper
from ort_graphs import residual_network

from edgekd.targets._graph import Graph
from edgekd.targets._sharing import share_constants


def test_equal_constants_become_one_and_the_answers_stay() -> None:
    model = residual_network()
    shared = onnx.ModelProto()
    shared.CopyFrom(model)
    count = share_constants(Graph(shared))
    assert count > 3
    left = shared.graph.initializer
    assert len(left) == len(model.graph.initializer) - count
    assert len({(one.data_type, tuple(one.dims), one.raw_data) for one in left}) == len(left)
    onnx.checker.check_model(shared, full_check=True)
    value = model.graph.input[0]
    shape = [one.dim_value or 2 for one in value.type.tensor_type.shape.dim]
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    answers = [
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {value.name: data}
        )[0]
        for one in (model, shared)
    ]
    np.testing.assert_array_equal(*answers)


def test_equal_bytes_of_another_type_or_shape_stay_apart() -> None:
    model = residual_network()
    zeros = np.full(4, 1e9, np.float32)
    tensors = {"a": zeros, "b": zeros.astype(np.int32), "c": zeros.reshape(2, 2), "d": zeros.copy()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    share_constants(Graph(model))
    left = {one.name for one in model.graph.initializer}
    assert {"a", "b", "c"} <= left
    assert "d" not in left


def test_files_that_ship_hold_no_constant_twice() -> None:
    for name in ("onnxruntime_x86", "onnxruntime_arm", "openvino"):
        left = exported("tiny", name).graph.initializer
        assert len({(one.data_type, tuple(one.dims), one.raw_data) for one in left}) == len(left)
