"""From a run to a bundle: what the manifest says of it, the card, and the program that runs without edgekd."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekd import pipeline
from edgekd.bundle import open_bundle, verify_bundle
from edgekd.cli.main import main
from edgekd.errors import ArtifactError, OverwriteRefused, UsageError
from edgekd.recipe import Recipe

TARGET = "onnxruntime_x86"


@pytest.fixture(scope="module")
def packed(finished: pipeline.RunResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the small run, as a folder that is only read."""
    folder = tmp_path_factory.mktemp("packed") / "small"
    licence = folder.with_name("LICENSE")
    licence.write_text("Do what you like.\n")
    pipeline.pack(finished.out, folder, licence=licence)
    return folder


def ran(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """run_model.py in a process that cannot import edgekd or torch."""
    code = (
        "import sys, runpy; sys.modules.update(edgekd=None, torch=None); sys.argv = sys.argv[1:];"
        " runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(folder / "run_model.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder.parent,
    )


def test_bundle_holds_the_run(packed: Path, finished: pipeline.RunResult) -> None:
    with open_bundle(packed) as bundle:
        manifest = bundle.manifest
    assert [(one.rung, one.precision, one.file) for one in manifest.models] == [
        ("onnx_int8", "int8", f"models/{TARGET}/int8.onnx"),
        ("onnx_float", "float32", f"models/{TARGET}/float32.onnx"),
    ]
    int8, float32 = manifest.models
    assert (int8.machines, float32.machines) == (["x86_64", "AMD64"], [])
    assert (int8.opset, int8.runtime, int8.preprocessing_inside) == (20, "onnxruntime", False)
    assert int8.inputs[0].shape == ["batch", 1, 8, 8]
    low, high = int8.inputs[0].value_range or (0, 0)
    given = manifest.preprocessing
    assert low == pytest.approx(min(-m / s for m, s in zip(given.mean, given.std, strict=True)), rel=1e-5)
    assert high == pytest.approx(max((1 - m) / s for m, s in zip(given.mean, given.std, strict=True)), rel=1e-5)
    assert manifest.lineage[0].stage == "teacher"
    ids = {row.id for row in manifest.lineage}
    assert int8.artifact in ids
    assert all(parent in ids for row in manifest.lineage for parent in row.parents)
    [budget] = manifest.budgets
    assert (budget.budget_ms, budget.percentile, budget.confidence, budget.means) == (500.0, 90.0, 0.99, "inference")
    report = finished.report
    assert manifest.metrics["ladder"] == [row.model_dump(mode="json") for row in report.ladder]
    assert manifest.metrics["latency"] == [row.model_dump(mode="json") for row in report.latency]
    assert (manifest.labels, manifest.created_utc) == ([f"pattern {index}" for index in range(4)], report.created_utc)
    assert set(manifest.files) == {
        f"models/{TARGET}/int8.onnx",
        f"models/{TARGET}/float32.onnx",
        f"golden/{TARGET}-int8.npz",
        f"golden/{TARGET}-float32.npz",
        "README.md",
        "run_model.py",
        "LICENSE",
    }


def test_bundle_verifies_here(packed: Path) -> None:
    found = verify_bundle(packed)
    assert found.passed
    assert found.replay is not None
    assert [model.outputs[0].max_abs_error for model in found.replay.models] == pytest.approx([0.0, 0.0], abs=1e-5)


def test_card_says_what_matters(packed: Path, finished: pipeline.RunResult) -> None:
    card = (packed / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: onnxruntime" in front
    assert 'base_model: "tiny"' in front
    assert "\nlicense:" not in front
    values = {row.rung: row.value for row in finished.report.ladder}
    assert f"- the teacher: {100 * values['teacher']:.2f}" in card
    assert f"- the same network trained without a teacher: {100 * values['student_alone']:.2f}" in card
    assert "- what the teacher gave: " in card
    assert "## Accuracy ladder" in card
    assert "## Latency" in card
    assert card.count("not stated") == 3
    assert "Nobody stated under which licence" in card
    assert "at most 500 ms, with 99 % confidence" in card
    assert "\n\n\n" not in card.split("## Results")[1]


def test_same_run_packs_to_the_same_archive(finished: pipeline.RunResult, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        pipeline.pack(finished.out, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_run_model_replays_the_golden_vectors(packed: Path) -> None:
    done = ran(packed, "--verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["ok", "ok"]


def test_run_model_says_what_differs(packed: Path, tmp_path: Path) -> None:
    from bundle.test_open import hashed

    from edgekd._bundle_golden import read_golden, write_golden

    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    with open_bundle(packed) as bundle:
        entry = bundle.manifest.models[0]
        inputs, outputs = read_golden(bundle.file(entry.golden.file), entry)  # type: ignore[union-attr]
    outputs["logits"][2, 1] += 100
    golden = f"golden/{TARGET}-int8.npz"
    write_golden(tmp_path / "golden.npz", inputs, outputs)
    hashed(folder, golden, (tmp_path / "golden.npz").read_bytes())
    done = ran(folder, "--verify")
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if line.startswith("DIFFERS"))
    assert f"models/{TARGET}/int8.onnx output 'logits': largest difference 100, at [2, 1]" in line
    found = verify_bundle(folder)
    assert not found.passed
    assert found.replay is not None
    assert "output 'logits' differs by 100 at [2, 1]" in found.replay.problems()[0]


@pytest.mark.parametrize("name", ["manifest.json", f"models/{TARGET}/int8.onnx", f"golden/{TARGET}-int8.npz"])
def test_run_model_names_a_damaged_file(packed: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    done = ran(folder, "--verify")
    assert done.returncode == 3
    assert f"{name} is damaged. Copy the bundle again." in done.stderr


def test_run_model_classifies_images(packed: Path, tmp_path: Path) -> None:
    """A picture and the same pixels as an array: the answers of the session on the data set's own preprocessing."""
    import onnxruntime

    from edgekd.agent.images import prepare

    pixels = np.random.default_rng(3).integers(0, 256, (20, 12, 1)).astype(np.uint8)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "one.png")
    np.save(tmp_path / "one.npy", pixels)
    done = ran(packed, str(tmp_path / "one.png"), str(tmp_path / "one.npy"), "--top", "1")
    assert done.returncode == 0, done.stderr
    with open_bundle(packed) as bundle:
        session = onnxruntime.InferenceSession(str(bundle.file(f"models/{TARGET}/int8.onnx")))
        [logits] = session.run(None, {"image": prepare(pixels, bundle.manifest.preprocessing.model_dump())})[0]
    score = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    wanted = f"pattern {logits.argmax()} {score.max():.1%}"
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == [wanted, wanted]


def test_run_model_times(packed: Path) -> None:
    done = ran(packed, "--bench", "5", "--model", "float32")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"models/{TARGET}/float32.onnx: 5 runs, median ")


def test_run_model_without_onnxruntime_says_so(packed: Path) -> None:
    code = (
        "import sys, runpy; sys.modules.update(onnxruntime=None); sys.argv = sys.argv[1:];"
        " runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(packed / "run_model.py"), "--bench", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "onnxruntime is not installed" in done.stderr


def test_run_model_needs_no_newer_python_than_it_says(packed: Path) -> None:
    import ast

    ast.parse((packed / "run_model.py").read_text(), feature_version=(3, 8))


def test_preprocessing_inside_goes_through_run_bundle_and_script(
    small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = small_recipe(
        {
            "export": {"preprocessing": "inside", "licences": {"data": "CC0-1.0", "model": "Apache-2.0"}},
            "distill": {"baseline": False, "train": {"epochs": 1}},
            "teacher": {"train": {"epochs": 1}},
            "quantize": {"mode": "ptq"},
        }
    )
    pipeline.run(recipe, out=tmp_path / "run", until="export")
    pipeline.pack(tmp_path / "run", tmp_path / "bundle")
    with open_bundle(tmp_path / "bundle") as bundle:
        entry = bundle.manifest.models[0]
        assert entry.preprocessing_inside
        assert (entry.inputs[0].dtype, entry.inputs[0].shape) == ("uint8", ["batch", 8, 8, 1])
        assert (entry.inputs[0].layout, entry.inputs[0].value_range) == ("NHWC", [0.0, 255.0])
        assert bundle.manifest.licences.model_dump() == {"teacher": None, "data": "CC0-1.0", "model": "Apache-2.0"}
        stored = np.load(bundle.file(entry.golden.file))  # type: ignore[union-attr]
        assert stored["input.image"].dtype == np.uint8
    [manifest] = (tmp_path / "run").glob("export-*/manifest.json")
    rows = json.loads(manifest.read_text())["metrics"]["preprocessing"]
    # the whole test split, both files: the same class for every sample, and the same logits but for the order of sums
    assert [(row["file"], row["n"], row["top1_agreement"]) for row in rows] == [
        ("model_float.onnx", 80, 1.0),
        ("model.onnx", 80, 1.0),
    ]
    assert max(row["max_abs_error"] for row in rows) < 1e-5
    assert verify_bundle(tmp_path / "bundle").passed
    assert ran(tmp_path / "bundle", "--verify").returncode == 0
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert 'license: "Apache-2.0"' in card
    assert "The model does its preprocessing itself" in card
    pixels = np.random.default_rng(3).integers(0, 256, (20, 12, 1)).astype(np.uint8)
    np.save(tmp_path / "one.npy", pixels)
    assert ran(tmp_path / "bundle", str(tmp_path / "one.npy")).returncode == 0


def test_run_without_an_export_is_told(tmp_path: Path, finished: pipeline.RunResult) -> None:
    with pytest.raises(ArtifactError, match=r"There is no run at .*: report\.json is missing"):
        pipeline.pack(tmp_path, tmp_path / "b.zip")
    copy = Path(shutil.copytree(finished.out, tmp_path / "run"))
    values: dict[str, Any] = json.loads((copy / "report.json").read_text())
    values["lineage"] = [row for row in values["lineage"] if row["kind"] != "exported"]
    (copy / "report.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=r"has no exported model. Run `edgekd export RECIPE` first"):
        pipeline.pack(copy, tmp_path / "b.zip")


def test_damaged_export_is_not_packed(tmp_path: Path, finished: pipeline.RunResult) -> None:
    copy = Path(shutil.copytree(finished.out, tmp_path / "run"))
    [model] = copy.glob("export-*/model.onnx")
    model.write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged"):
        pipeline.pack(copy, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_wrong_arguments_are_told(finished: pipeline.RunResult, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--target openvino: .* did not export it. It has: {TARGET}"):
        pipeline.pack(finished.out, tmp_path / "b.zip", targets=["openvino"])
    with pytest.raises(UsageError, match=r"none is no file. Give the text of the licence"):
        pipeline.pack(finished.out, tmp_path / "b.zip", licence=tmp_path / "none")
    (tmp_path / "mine").mkdir()
    with pytest.raises(OverwriteRefused, match="it is no bundle"):
        pipeline.pack(finished.out, tmp_path / "mine", overwrite=True)


def test_verbs(finished: pipeline.RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "b.zip"
    assert main(["pack", str(finished.out), "--out", str(bundle), "--quiet"]) == 0
    assert f"Bundle: {bundle}" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--no-run", "--json", "--quiet"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["ok"], shown["replay"], shown["problems"], shown["files"]) == (True, None, [], 6)
    assert main(["verify", str(bundle), "--quiet"]) == 0
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith(f"PASS: {bundle}: 6 files, ")
    bundle.write_bytes(bundle.read_bytes()[:-1])
    assert main(["verify", str(bundle), "--quiet"]) == 3
    assert "b.zip is damaged" in capsys.readouterr().err
    assert main(["verify", str(finished.out), "--no-run"]) == 2
    assert "--no-run belongs to bundles" in capsys.readouterr().err
    assert main(["pack", str(finished.out), "--sign-chain", "x.pem"]) == 2
    assert "belong to --sign" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none.zip")]) == 3
    assert main(["verify", str(bundle), "--device", "nowhere"]) == 3  # damaged before anything is looked for


def test_answers_that_differ_are_exit_code_1(make: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    from bundle.conftest import LOGITS

    assert main(["verify", str(make(logits=LOGITS + 1)), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "DIFFERS: models/plain/float32.onnx: output 'logits' differs by 1 at [" in out
    assert out.rstrip().splitlines()[-1].startswith("FAIL: ")
