"""The ONNX Runtime runner on real sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from ort_graphs import residual_network

from edgekd.errors import BackendMissing, MismatchError, ModelFileError
from edgekd.spec import Runner, TensorSpec
from edgekd.targets._onnxruntime import OnnxRuntimeRunner, ort_errors

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)
X = np.array([[1, 0, 2]], np.float32)


def linear(op: str = "MatMul") -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(linear(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_outputs_are_right_when_run_from_a_file_and_from_bytes(path: Path) -> None:
    for source in (path, path.read_bytes()):
        with OnnxRuntimeRunner(source) as runner:
            # row 0 plus twice row 2 of the weight, by hand
            np.testing.assert_array_equal(runner.run({"x": X})["y"], [[16, 19, 22, 25]])
            assert isinstance(runner, Runner)
            assert runner.inputs == [TensorSpec(name="x", shape=["B", 3])]
            assert runner.outputs == [TensorSpec(name="y", shape=["B", 4])]
            assert runner.provider_requested == runner.provider_used == "CPUExecutionProvider"


def test_external_weights_are_used_when_beside_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(linear(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    with OnnxRuntimeRunner(path) as runner:
        np.testing.assert_array_equal(runner.run({"x": X})["y"], [[16, 19, 22, 25]])


def test_unsafe_model_is_refused_when_opened(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    onnx.save(linear(), tmp_path / "in" / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(tmp_path / "in" / "model.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../in/w.bin"
    (tmp_path / "in" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="outside the model's folder"):
        OnnxRuntimeRunner(tmp_path / "in" / "model.onnx")


def test_provider_is_named_when_it_is_not_in_this_build(path: Path) -> None:
    with pytest.raises(BackendMissing, match=r"has no OpenVINOExecutionProvider.*Install onnxruntime-openvino"):
        OnnxRuntimeRunner(path, provider="OpenVINOExecutionProvider")
    with pytest.raises(BackendMissing, match=r"has no MadeUpProvider.*This build has: .*CPUExecutionProvider"):
        OnnxRuntimeRunner(path, provider="MadeUpProvider")


def test_both_sides_are_named_when_the_feeds_do_not_fit(path: Path) -> None:
    with OnnxRuntimeRunner(path) as runner:
        with pytest.raises(MismatchError, match=r"takes x float32 \['B', 3\]; got x float32 \[1, 5\]"):
            runner.run({"x": np.zeros((1, 5), np.float32)})
        with pytest.raises(MismatchError, match="got x float64"):
            runner.run({"x": X.astype(np.float64)})
        with pytest.raises(MismatchError, match="got nothing"):
            runner.run({})


def test_runtime_refusal_is_translated_when_the_model_is_valid_but_not_runnable(tmp_path: Path) -> None:
    model = linear()
    model.opset_import[0].version = onnx.defs.onnx_opset_version()
    model.graph.node[0].domain = "private.domain"
    model.opset_import.append(helper.make_opsetid("private.domain", 1))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="ONNX Runtime refuses the model"):
        OnnxRuntimeRunner(tmp_path / "model.onnx")


def test_every_exception_of_the_binding_is_translated() -> None:
    names = {error.__name__ for error in ort_errors()}
    assert {"Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException"} <= names
    assert Exception not in ort_errors()


def test_optimized_graph_is_written_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "optimized.onnx"
    OnnxRuntimeRunner(residual_network().SerializeToString(), optimized_path=file).close()
    assert "QLinearConv" in {node.op_type for node in onnx.load(file).graph.node}


def test_runner_refuses_to_run_when_closed(path: Path) -> None:
    with OnnxRuntimeRunner(path) as runner:
        pass
    with pytest.raises(RuntimeError, match="is closed"):
        runner.run({"x": X})
