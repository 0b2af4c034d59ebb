"""`edgekd agree` on real files: what it prints, and with which exit code it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from ort_graphs import C, H, residual_network

from edgekd.cli.main import main

X86 = ("--runtimes", "onnxruntime_x86")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(residual_network(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).standard_normal((16, C, H, H)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=values)
    return tmp_path / "data.npz"


def test_agreement_is_shown_with_n_and_interval(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agree", str(model), "--data", str(data), *X86, "-q"]) == 0
    shown = capsys.readouterr().out
    assert "16 samples; the reference is model.onnx on onnxruntime_plain" in shown
    for text in ("same top-1", "95 % interval", "largest diff.", "of range", "onnxruntime_x86"):
        assert text in shown
    assert max(len(line) for line in shown.splitlines() if not line.startswith("Cause")) <= 80


def test_json_has_every_pair(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agree", str(model), "--data", str(data), *X86, "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema_version"], found["samples"]) == (1, 16)
    assert [row["runtime"] for row in found["answers"]] == ["onnxruntime_plain", "onnxruntime_x86"]
    (pair,) = found["pairs"]
    assert (pair["a"], pair["n"], pair["passed"]) == (found["reference"], 16, None)
    low, high = pair["ci95"]
    assert low <= pair["top1_agreement"] <= high


@pytest.mark.parametrize(("wanted", "code"), [("0", 0), ("1.5", 2)])
def test_gate_decides_the_exit_code(
    wanted: str, code: int, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agree", str(model), "--data", str(data), *X86, "-q", "--min-agreement", wanted]) == code
    shown = capsys.readouterr()
    assert "PASS: agreement of at least 0.00 %" in shown.out if code == 0 else "min_agreement" in shown.err


def test_gate_that_is_missed_ends_with_1(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = onnx.load(model)
    weight = next(one for one in other.graph.initializer if one.name == "y_weight_q")
    codes = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(codes[::-1]), weight.name))
    onnx.save(other, model.with_name("other.onnx"))
    arguments = ["agree", str(model), str(model.with_name("other.onnx")), "--data", str(data), *X86, "-q"]
    assert main([*arguments, "--min-agreement", "0.99"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL: agreement of at least 99.00 % with the reference." in shown
    assert "other.onnx on onnxruntime_x86" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        ([], 2, "--data is missing"),
        (["--data", "nothing.npz"], 3, "no such file or folder"),
        (["--data", "DATA", "--runtimes", "onnxruntime_x68"], 2, "Did you mean 'onnxruntime_x86'?"),
        (["--data", "DATA", "--runtimes", "emulated_arm64", "--arm64-userland", "."], 4, "is no arm64 userland"),
    ],
)
def test_wrong_use_has_its_exit_code(
    more: list[str], code: int, text: str, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(data) if one == "DATA" else one for one in more]
    assert main(["agree", str(model), *arguments, "-q"]) == code
    assert text in capsys.readouterr().err
