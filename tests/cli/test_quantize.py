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


def test_statistics_are_kept_used_again_and_refused_for_other_samples(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, outs = project / "seen.json", [project / "one.onnx", project / "two.onnx"]
    arguments = ["quantize", str(project / "model.onnx"), "--data", str(project / "data.npz"), "--samples", "32"]
    arguments += ["--statistics", str(kept), "--json", "--quiet"]
    found = []
    for out in outs:
        assert main([*arguments, "--out", str(out)]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["calibration_s"] > found[1]["calibration_s"] == 0.0
    assert found[1]["calibration_samples"] == 32
    assert outs[0].read_bytes() == outs[1].read_bytes()
    before = kept.read_bytes()
    assert main([*arguments, "--samples", "33", "--out", str(project / "three.onnx")]) == 2
    assert "has samples" in capsys.readouterr().err
    assert kept.read_bytes() == before
    kept.write_bytes(before.replace(b"0", b"1", 1))
    assert main([*arguments, "--out", str(project / "four.onnx")]) == 3
    assert "are damaged" in capsys.readouterr().err
    assert not (project / "four.onnx").exists()


@pytest.mark.parametrize("selection", ["first", "random", "k_center"])
def test_samples_are_selected_as_asked(project: Path, selection: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = project / f"selected-{selection}.json"
    arguments = ["quantize", str(project / "model.onnx"), "--data", str(project / "data.npz"), "--samples", "10"]
    arguments += ["--selection", selection, "--statistics", str(kept), "--out", str(project / f"{selection}.onnx")]
    assert main([*arguments, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 310
    seen = {one.stem: json.loads(one.read_text())["fingerprint"]["samples"] for one in project.glob("selected-*.json")}
    assert len(set(seen.values())) == len(seen)
    assert f"selected-{selection}" in seen


def test_biases_are_left_alone_when_asked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quantize", str(project / "model.onnx"), "--data", str(project / "data.npz"), "--samples", "10"]
    counts = []
    for flag in ("--bias-correction", "--no-bias-correction"):
        assert main([*arguments, flag, "--out", str(project / f"{flag}.onnx"), "--json", "--quiet"]) == 0
        counts.append(json.loads(capsys.readouterr().out)["corrected_biases"])
    assert counts[0] >= 8
    assert counts[1] == 0
