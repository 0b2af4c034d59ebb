"""`edgekd audit` on real files: what it prints, and with which exit code it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from ort_graphs import C, H, QdqGraph, residual_network

from edgekd.cli.main import main
from edgekd.targets._trt_library import trt_library


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def float_model() -> onnx.ModelProto:
    graph = QdqGraph()
    return graph.model(graph.conv("x", "y", weight=graph.real("w", (C, C, 3, 3)), bias=graph.real("b", (C,))))


def island_model() -> onnx.ModelProto:
    graph = QdqGraph()
    return graph.model(graph.op("HardSwish", [graph.conv(graph.pair("x"), "c")], "y"))


def custom_model() -> onnx.ModelProto:
    graph = QdqGraph()
    made = graph.pair(graph.conv(graph.pair("x"), "c"))
    graph.nodes.append(helper.make_node("Magic", [made], ["m"], domain="acme", name="node_m"))
    graph.pair(graph.conv(graph.pair("m"), "d"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", C, H, H]) for name in ("x", "d_dq")]
    return helper.make_model(
        helper.make_graph(graph.nodes, "graph", ends[:1], ends[1:], graph.initializers),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)],
        ir_version=9,
    )


def ended(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    code = main(["audit", str(path), "--quiet", *more])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def as_json(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = ended(path, capsys, "--json", *more)
    return code, json.loads(out)


def test_whole_int8_file_passes_with_its_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(residual_network(), tmp_path / "model.onnx")
    code, found = as_json(path, capsys)
    assert (code, found["quantizable"], found["int8"], found["islands"]) == (0, 7, 7, [])
    assert (found["int8_asked"], found["source"], found["refusals"]) == (True, "runtime", [])
    works = {row["op"]: row["work"] for row in found["operators"]}
    assert works["QLinearConv"] == works["QGemm"] == "int8"
    assert works["QuantizeLinear"] == works["Transpose"] == "conversion"
    assert sum(row["share"] for row in found["operators"]) == pytest.approx(1.0)
    assert sum(row["time_us"] for row in found["operators"]) == pytest.approx(found["total_us"])
    places = {(row["op"], row["place"]) for row in found["conversions"]}
    assert {("QuantizeLinear", "model input"), ("DequantizeLinear", "model output")} <= places
    converted = sum(row["share"] for row in found["operators"] if row["work"] == "conversion")
    assert found["conversion_share"] == pytest.approx(converted)
    assert converted == pytest.approx(sum(row["share"] for row in found["conversions"]))


def test_island_fails_with_its_cause_and_remedy_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(island_model(), tmp_path / "model.onnx")
    code, out, err = ended(path, capsys)
    assert (code, err) == (1, "")
    line = next(line for line in out.splitlines() if "node_c" in line)
    assert "of the time: there is no Q on its output 'c', which goes in float to HardSwish" in line
    assert line.endswith("Remedy: put a Q/DQ pair on 'c'.")
    assert "an activation function without an int8 kernel" in " ".join(out.split())
    assert "a constant of float Conv, dequantized in every run" in " ".join(out.split())
    assert out.rstrip().endswith("FAIL: 0 of 1 operators that can run as int8 do (0.0 %).")


def test_float_file_passes_unless_int8_is_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(float_model(), tmp_path / "model.onnx")
    code, out, _ = ended(path, capsys)
    assert code == 0
    assert "1 of its operators could run as int8 (edgekd quantize)" in out
    assert "int8 was not asked for" in out
    code, found = as_json(path, capsys, "--require-int8")
    assert (code, found["quantizable"], found["int8"]) == (1, 1, 0)
    assert found["islands"][0]["cause"] == "the file has no Q/DQ nodes"
    # the runtime renames a float convolution when it changes its layout; its time is found all the same
    assert found["islands"][0]["share"] > 0


def test_causes_that_agree_share_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = QdqGraph()
    name = "x"
    for index in range(5):
        weight, bias = graph.real(f"w{index}", (C, C, 3, 3)), graph.real(f"b{index}", (C,))
        name = graph.conv(name, f"c{index}", weight=weight, bias=bias)
    _, out, _ = ended(saved(graph.model(name), tmp_path / "model.onnx"), capsys, "--require-int8")
    lines = [line for line in out.splitlines() if "the file has no Q/DQ nodes" in line]
    assert len(lines) == 1
    assert "Conv 'node_c" in lines[0]
    assert "and 2 more" in lines[0]


def test_rules_speak_and_say_so_when_the_runtime_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = as_json(saved(custom_model(), tmp_path / "model.onnx"), capsys)
    assert (code, found["source"], found["quantizable"], found["int8"]) == (1, "rules", 2, 2)
    assert found["refusals"][0].startswith("ONNX Runtime refuses the model:")
    assert "acme:Magic" in found["refusals"][0]
    assert any("what the rules expect of it, not what ran" in note for note in found["notes"])
    reasons = {row["op"]: row["reason"] for row in found["legitimate"]}
    assert reasons == {"acme:Magic": "of another domain: nothing is known of its kernels"}


def test_given_inputs_are_used_for_the_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = QdqGraph()
    model = graph.model(graph.pair(graph.conv(graph.pair("x"), "c")), shape=("B", C, "height", H))
    path = saved(model, tmp_path / "model.onnx")
    code, found = as_json(path, capsys)
    assert (code, found["total_us"]) == (0, None)
    assert "dimension 2 ('height') is dynamic" in found["notes"][0]
    np.savez(tmp_path / "data.npz", x=np.zeros((3, C, 4, H), np.float32))
    code, found = as_json(path, capsys, "--data", str(tmp_path / "data.npz"))
    assert (code, found["notes"]) == (0, [])
    assert found["total_us"] > 0


@pytest.mark.parametrize(
    ("shape", "code", "text"),
    [((2, 3, H, H), 2, "'x' has shape \\[2, 3, 6, 6\\]"), (None, 3, "no such file or folder")],
)
def test_data_that_do_not_fit_are_refused(
    shape: tuple[int, ...] | None, code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(residual_network(), tmp_path / "model.onnx")
    if shape is not None:
        np.savez(tmp_path / "data.npz", x=np.zeros(shape, np.float32))
    ending, _, err = ended(path, capsys, "--data", str(tmp_path / "data.npz"))
    assert ending == code
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(err)


@pytest.mark.parametrize(
    ("content", "text"), [(None, "no such file"), (b"", "the file is empty"), (b"not a model", "not an ONNX file")]
)
def test_file_that_cannot_be_read_is_3(
    content: bytes | None, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    code, _, err = ended(path, capsys)
    assert code == 3
    assert text in err


def test_unknown_target_is_2_and_a_near_name_is_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ended(saved(residual_network(), tmp_path / "model.onnx"), capsys, "--target", "onnxruntime_x68")
    assert code == 2
    assert "Did you mean 'onnxruntime_x86'?" in err


def test_missing_backend_is_4(tmp_path: Path) -> None:
    path = saved(residual_network(), tmp_path / "model.onnx")
    # a process in which the library's import fails, as where it is not installed
    program = (
        "import sys; sys.modules['tensorrt'] = sys.modules['tensorrt_rtx'] = None\n"
        "from edgekd.cli.main import main\n"
        f"sys.exit(main(['audit', {str(path)!r}, '--target', 'tensorrt']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "edgekd[tensorrt]" in done.stderr


def test_weights_in_another_file_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(residual_network(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    code, found = as_json(path, capsys)
    assert (code, found["int8"]) == (0, 7)
    (tmp_path / "w.bin").unlink()
    assert ended(path, capsys)[0] == 3


def test_empty_graph_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    model = helper.make_model(
        helper.make_graph([], "empty", [value], [value]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    code, out, _ = ended(saved(model, tmp_path / "model.onnx"), capsys)
    assert code == 0
    assert "None of its operators could run as int8." in out


def test_time_in_a_loop_counts_every_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = QdqGraph()
    result = graph.pair(graph.conv(graph.pair("state"), "c"))
    graph.op("Identity", ["go"], "go_on")
    shape = ["B", C, H, H]
    tensor = helper.make_tensor_value_info
    body = helper.make_graph(
        graph.nodes,
        "body",
        [
            tensor("i", TensorProto.INT64, []),
            tensor("go", TensorProto.BOOL, []),
            tensor("state", TensorProto.FLOAT, shape),
        ],
        [tensor("go_on", TensorProto.BOOL, []), tensor(result, TensorProto.FLOAT, shape)],
        graph.initializers,
    )
    rounds = onnx.numpy_helper.from_array(np.array(4), "n")
    whole = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body, name="loop")],
        "graph",
        [tensor("x", TensorProto.FLOAT, shape)],
        [tensor("y", TensorProto.FLOAT, shape)],
        [rounds],
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    code, found = as_json(saved(model, tmp_path / "model.onnx"), capsys)
    assert (code, found["quantizable"], found["int8"]) == (0, 1, 1)
    rows = {row["op"]: row for row in found["operators"]}
    assert (rows["Loop"]["work"], rows["Loop"]["time_us"]) == ("other", 0.0)
    assert rows["QLinearConv"]["count"] == 1
    assert rows["QLinearConv"]["time_us"] > 0


@pytest.fixture
def tensorrt() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed. Install edgekd[tensorrt].")
    trt_library()


@pytest.mark.tensorrt
@pytest.mark.usefixtures("tensorrt")
def test_axis_that_tensorrt_cannot_take_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = QdqGraph()
    convolved = graph.op("Conv", [graph.pair("x", dtype="int8"), graph.stored("w", (C, C, 3, 3))], "c")
    model = graph.model(convolved, shape=("B", C, "height", "width"))
    path = saved(model, tmp_path / "model.onnx")
    code, found = as_json(path, capsys, "--target", "tensorrt")
    assert (code, found["quantizable"], found["int8"]) == (1, 1, 1)
    assert "is dynamic in height, width" in found["refusals"][0]
    fixed = graph.model(convolved, shape=("B", C, H, H))
    code, found = as_json(saved(fixed, path), capsys, "--target", "tensorrt")
    assert (code, found["refusals"]) == (0, [])
    assert any("dynamic batch" in note for note in found["notes"])


@pytest.mark.tensorrt
@pytest.mark.usefixtures("tensorrt")
def test_rules_of_tensorrt_speak_when_its_parser_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = QdqGraph()
    signed = {"dtype": "int8"}
    made = graph.op("Conv", [graph.pair("x", **signed), graph.stored("w", (C, C, 3, 3))], "c")
    graph.nodes.append(helper.make_node("Magic", [made], ["m"], domain="acme", name="node_m"))
    graph.op("Conv", ["m", graph.stored("v", (C, C, 3, 3))], "d")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, C, H, H]) for name in ("x", "d")]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "graph", ends[:1], ends[1:], graph.initializers),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)],
        ir_version=9,
    )
    code, found = as_json(saved(model, tmp_path / "model.onnx"), capsys, "--target", "tensorrt")
    assert (code, found["source"], found["quantizable"], found["int8"]) == (1, "rules", 2, 1)
    assert [row["name"] for row in found["islands"]] == ["node_d"]
    assert found["islands"][0]["cause"] == "its data input 'm' comes from Magic 'node_m' without a Q/DQ pair"
    assert "Magic" in found["refusals"][0]


def test_openvino_tells_its_own_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed. Install edgekd[openvino].")
    code, found = as_json(saved(residual_network(), tmp_path / "model.onnx"), capsys, "--target", "openvino")
    assert (code, found["target"]) == (0, "openvino")
    assert found["int8"] == found["quantizable"] >= 4
    assert found["total_us"] > 0
    assert sum(row["share"] for row in found["operators"]) == pytest.approx(1.0)


def test_arm_file_is_not_timed_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(residual_network(dtype="int8", zero=-128), tmp_path / "model.onnx")
    code, found = as_json(path, capsys, "--target", "onnxruntime_arm")
    assert (code, found["int8"], found["total_us"]) == (0, 7, None)
    assert any("is for aarch64 processors" in note for note in found["notes"])
    assert as_json(path, capsys, "--target", "onnxruntime_x86")[0] == 1
