"""A bundle of ONNX files that no run made."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.bundle import open_bundle, verify_bundle
from edgekd.cli.main import main
from edgekd.errors import DataError, EdgeKDError, MismatchError, UsageError
from edgekd.pipeline import bench_bundle, pack_files, quantize_file
from edgekd.recipe import BenchSettings, FileSettings

HERE = "onnxruntime_x86" if platform.machine() in ("x86_64", "AMD64") else "onnxruntime_arm"
MEAN_STD = {"mean": [0.5], "std": [0.25]}


def network(path: Path, *, classes: int = 3, batch: int | str = "batch") -> Path:
    """A convolution, a ReLU, a mean and a linear layer: image (B, 1, 6, 6) to logits (B, K)."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.standard_normal((8, 1, 3, 3)).astype(np.float32),
        "bias": rng.standard_normal(8).astype(np.float32),
        "matrix": rng.standard_normal((8, classes)).astype(np.float32),
        "offset": np.zeros(classes, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["maps"], name="conv"),
        helper.make_node("Relu", ["maps"], ["active"], name="relu"),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "matrix", "offset"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 6, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float file, its int8 file, samples and the names of its classes."""
    folder = tmp_path_factory.mktemp("files")
    model, data, labels = network(folder / "net.onnx"), folder / "samples.npz", folder / "classes.txt"
    np.savez(data, image=np.random.default_rng(1).standard_normal((64, 1, 6, 6)).astype(np.float32))
    labels.write_text("cat\ndog\ncow, ox\n")
    int8 = folder / "net.int8.onnx"
    quantize_file(model, data, FileSettings(samples=32), target=HERE, out=int8)
    return {"model": model, "int8": int8, "data": data, "labels": labels}


def test_files_become_a_bundle_whose_answers_hold(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "net.zip"
    written = pack_files(files["model"], {HERE: files["int8"]}, files["data"], out, labels=files["labels"], **MEAN_STD)
    assert [(one.rung, one.target, one.golden.samples if one.golden else 0) for one in written.models] == [
        ("onnx_int8", HERE, 4),
        ("onnx_float", HERE, 4),
    ]
    assert written.labels == ["cat", "dog", "cow, ox"]
    assert (written.preprocessing.mean, written.preprocessing.size) == ([0.5], [6, 6])
    assert (written.lineage, written.budgets) == ([], [])
    found = verify_bundle(out)
    assert found.passed
    assert found.replay is not None
    assert [row.samples for row in found.replay.models] == [4, 4]
    with open_bundle(out) as bundle:
        card = bundle.file("README.md").read_text(encoding="utf-8")
    assert "packed from its files" in card
    assert "Nothing is known here about how accurate it is." in card
    assert "knowledge-distillation" not in card


def test_model_with_a_fixed_batch_is_replayed_piece_by_piece(files: dict[str, Path], tmp_path: Path) -> None:
    model, int8 = network(tmp_path / "fixed.onnx", batch=2), tmp_path / "fixed.int8.onnx"
    quantize_file(model, files["data"], FileSettings(samples=32), target=HERE, out=int8)
    out = tmp_path / "fixed"
    written = pack_files(model, {HERE: int8}, files["data"], out, labels=files["labels"], **MEAN_STD)
    assert written.models[0].inputs[0].shape == [2, 1, 6, 6]
    found = verify_bundle(out)
    assert found.passed
    assert found.replay is not None
    assert found.replay.models[0].outputs[0].n == 4


def test_two_targets_share_the_float_file(files: dict[str, Path], tmp_path: Path) -> None:
    other = {"onnxruntime_x86": "onnxruntime_arm", "onnxruntime_arm": "onnxruntime_x86"}[HERE]
    int8 = tmp_path / "other.onnx"
    quantize_file(files["model"], files["data"], FileSettings(samples=32), target=other, out=int8)
    out = tmp_path / "two.zip"
    written = pack_files(
        files["model"], {other: int8, HERE: files["int8"]}, files["data"], out, labels=files["labels"], **MEAN_STD
    )
    assert [(one.rung, one.target) for one in written.models] == [
        ("onnx_int8", other),
        ("onnx_int8", HERE),
        ("onnx_float", other),
    ]
    report = bench_bundle(out, BenchSettings(queries=20, cold_repeats=1))
    assert {(row.rung, row.target) for row in report.latency} == {("onnx_int8", HERE), ("onnx_float", HERE)}


def test_command_packs_files(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pack", str(files["model"]), "--int8", f"{HERE}={files['int8']}", "--data", str(files["data"])]
    words += ["--labels", str(files["labels"]), "--mean", "0.5", "--std", "0.25", "--out", str(tmp_path / "x.zip")]
    assert main([*words, "--quiet"]) == 0
    assert f"models/{HERE}/int8.onnx" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "x.zip"), "--quiet"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "takes --int8 TARGET=FILE and --data SAMPLES"),
        (["--int8", "onnxruntime_x86", "--data", "s.npz"], "--int8 must be TARGET=FILE, got onnxruntime_x86."),
        (["--int8", "a=b", "--data", "s.npz", "--target", "tensorrt"], "--target is for runs"),
    ],
)
def test_command_says_what_files_need(
    files: dict[str, Path], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(files["model"]), *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_run_takes_no_options_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(tmp_path), "--labels", "classes.txt"]) == 2
    assert "--labels is for ONNX files; a run has its own." in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"labels": None}, DataError, r"net\.onnx: the file does not name its classes\. Give --labels FILE"),
        ({"mean": None, "std": None}, DataError, r"does not say how its images are normalised\. Give --mean and --std"),
        ({"int8": {}}, UsageError, r"at least one int8 file\. Give --int8 TARGET=FILE"),
        ({"int8": {"xnnpack": "int8"}}, UsageError, r"--int8 xnnpack: files of this target are no ONNX files"),
        ({"int8": {"nothing": "int8"}}, UsageError, r"There is no target 'nothing'"),
        ({"mean": [0.5, 0.5]}, MismatchError, r"--mean and --std"),
    ],
)
def test_what_is_missing_is_said(
    files: dict[str, Path], tmp_path: Path, change: dict[str, object], kind: type[EdgeKDError], said: str
) -> None:
    given = {"labels": files["labels"], "int8": {HERE: "int8"}, **MEAN_STD, **change}
    int8 = {name: files[str(which)] for name, which in dict(given.pop("int8")).items()}  # type: ignore[call-overload]
    with pytest.raises(kind, match=said):
        pack_files(files["model"], int8, files["data"], tmp_path / "x.zip", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "x.zip").exists()


def test_files_that_do_not_fit_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    other = network(tmp_path / "other.onnx", classes=4)
    options = {"labels": files["labels"], **MEAN_STD}
    with pytest.raises(MismatchError, match=r"other\.onnx takes .*\[.batch., 4\]; .*net\.onnx takes .*Quantize that"):
        pack_files(files["model"], {HERE: other}, files["data"], tmp_path / "x", **options)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match=r"classes\.txt names 3 classes, the model gives 4 logits"):
        pack_files(other, {HERE: other}, files["data"], tmp_path / "x", **options)  # type: ignore[arg-type]
    few = tmp_path / "few.npz"
    np.savez(few, image=np.zeros((3, 1, 6, 6), np.float32))
    with pytest.raises(DataError, match=r"few\.npz has 3 samples, the golden vectors of .* take 4"):
        pack_files(files["model"], {HERE: files["int8"]}, few, tmp_path / "x", **options)  # type: ignore[arg-type]
