"""pipeline.bench_file: any ONNX file by the recipe's protocol, and a clear no to those that cannot be run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pipeline.conftest import TARGET, artifact_of

from edgekd import pipeline
from edgekd.errors import ModelFileError, UsageError
from edgekd.recipe import BenchSettings

QUICK = BenchSettings(queries=64, max_seconds=5.0)


def model_file(path: Path, *, kind: int = TensorProto.FLOAT, shape: tuple[object, ...] = ("B", 3)) -> Path:
    """x -> x, as an ONNX file."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def with_weights_at(path: Path, location: str) -> Path:
    """x + w, where w is said to lie in another file."""
    weight = numpy_helper.from_array(np.ones((64, 64), dtype=np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(64 * 64 * 4))):
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (64, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (64, 64))],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_int8_file_of_a_run_passes_a_wide_budget_and_is_audited(finished: pipeline.RunResult) -> None:
    file = artifact_of(finished.out, f"export-{TARGET}").file("model.onnx")
    report = pipeline.bench_file(file, QUICK)
    assert [(row.rung, row.n, row.verdict) for row in report.latency] == [("onnx_int8", 64, "PASS")]
    assert [row.coverage for row in report.fusion] == [1.0]
    assert report.verdict is not None
    assert report.verdict.overall == "PASS"
    assert report.ladder == []


def test_foreign_float_file_misses_a_budget_that_nothing_meets(tmp_path: Path) -> None:
    report = pipeline.bench_file(model_file(tmp_path / "m.onnx"), QUICK.model_copy(update={"budget_ms": 1e-7}))
    assert [(row.rung, row.verdict) for row in report.latency] == [("onnx_float", "FAIL")]
    assert report.verdict is not None
    assert (report.verdict.overall, report.verdict.rung) == ("FAIL", "onnx_float")
    assert report.fusion == []
    assert [row.size_bytes for row in report.mobile] == [(tmp_path / "m.onnx").stat().st_size]


def test_external_data_beside_the_file_is_fine(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64 * 64 * 4))
    report = pipeline.bench_file(with_weights_at(tmp_path / "m.onnx", "w.bin"), QUICK)
    assert report.latency[0].n == 64


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "sub/../../secret.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelFileError, match=r"m\.onnx.*'w'"):
        pipeline.bench_file(with_weights_at(tmp_path / "models" / "m.onnx", location), QUICK)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"not a model at all", "not an ONNX file"),
        (b"\x08\x07garbage" * 40, "not an ONNX file"),
    ],
)
def test_file_that_is_no_model_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"m\.onnx: {told}"):
        pipeline.bench_file(tmp_path / "m.onnx", QUICK)


def test_truncated_model_is_named(finished: pipeline.RunResult, tmp_path: Path) -> None:
    whole = artifact_of(finished.out, f"export-{TARGET}").file("model.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match=r"m\.onnx: not an ONNX file, or truncated"):
        pipeline.bench_file(tmp_path / "m.onnx", QUICK)


@pytest.mark.parametrize(
    ("kind", "shape", "told"),
    [
        (TensorProto.STRING, ("B",), "Input 'x' has element type string, which cannot be made"),
        (TensorProto.FLOAT, ("B", "length"), r"dimension 1 \('length'\) is dynamic and has no value"),
    ],
)
def test_input_that_cannot_be_made_is_named(tmp_path: Path, kind: int, shape: tuple[object, ...], told: str) -> None:
    with pytest.raises(ModelFileError, match=told):
        pipeline.bench_file(model_file(tmp_path / "m.onnx", kind=kind, shape=shape), QUICK)


def test_unknown_target_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no target 'tensort'\. Did you mean 'tensorrt'\?"):
        pipeline.bench_file(model_file(tmp_path / "m.onnx"), QUICK, target="tensort")
