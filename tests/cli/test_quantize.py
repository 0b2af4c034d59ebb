"""`edgekd quantize` on ONNX files: what people see, what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_models import exported, images

from edgekd.cli.main import main


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    onnx.save(exported("resnet", "onnxruntime_x86", int8=False), folder / "model.onnx")
    inputs, labels = images(320, 0)
    np.savez(folder / "data.npz", image=inputs.numpy(), labels=labels.numpy())
    return folder


def test_a_file_is_quantized_and_held_against_the_float_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = project / "out.onnx"
    arguments = ["quantize", str(project / "model.onnx"), "--data", str(project / "data.npz"), "--samples", "64"]
    assert main([*arguments, "--out", str(out), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(out)
    assert (found["calibration_samples"], found["evaluated_on"], found["n"]) == (64, "held-out", 256)
    assert found["coverage"] == 1.0
    assert found["agreement"] > 0.95
    assert found["accuracy"]["int8"] > 0.9
    assert found["size_bytes"] < found["float_size_bytes"]
    assert {node.op_type for node in onnx.load(out).graph.node} >= {"QuantizeLinear", "DequantizeLinear", "Conv"}


def test_the_table_says_what_was_measured(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quantize", str(project / "model.onnx"), "--data", str(project / "data.npz")]
    assert main([*arguments, "--target", "onnxruntime_arm", "--quiet", "--overwrite"]) == 0
    shown = capsys.readouterr().out
    for part in ("onnxruntime_arm", "top-1 agreement", "output SQNR", "runs as int8", "model.int8.onnx"):
        assert part in shown
    assert (project / "model.int8.onnx").exists()


def test_a_result_is_not_overwritten_unasked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = project / "kept.onnx"
    kept.write_bytes(b"mine")
    arguments = ["quantize", str(project / "model.onnx"), "--data", str(project / "data.npz"), "--out", str(kept)]
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert kept.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["model.onnx"], 2, "--data is missing"),
        (["model.onnx", "--data", "data.npz", "--check"], 2, "--set and --check belong to recipes"),
        (["recipe.toml", "--data", "data.npz"], 2, "--data is for ONNX files"),
        (["recipe.toml", "--float-layer", "x"], 2, "--float-layer is for ONNX files"),
        (["model.onnx", "--data", "data.npz", "--calibrator", "nothing"], 2, "nothing"),
        (["model.onnx", "--data", "data.npz", "--samples", "0"], 2, "--samples"),
        (["model.onnx", "--data", "data.npz", "--mean", "a,b"], 2, "--mean: numbers with commas"),
        (["model.onnx", "--data", "data.npz", "--float-layer", "nowhere"], 2, "no quantizable node 'nowhere'"),
        (["missing.onnx", "--data", "data.npz"], 3, "no such file"),
        (["model.onnx", "--data", "missing.npz"], 3, "no such file or folder"),
    ],
)
def test_mistakes_get_one_clear_error(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    # only what names a file of the project becomes a path
    given = [str(project / one) if one.endswith((".onnx", ".npz", ".toml")) else one for one in arguments]
    assert main(["quantize", *given, "--out", str(project / "never.onnx"), "--quiet"]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (project / "never.onnx").exists()
