"""Every verb, on real files: one small run that the others look at."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgekd.catalog import CATALOGS
from edgekd.cli import bench_options, options
from edgekd.cli.main import main
from edgekd.pipeline._planned import planned
from edgekd.recipe import BenchSettings, load_recipe

RECIPE = """
name = "small"
[compute]
threads = 1
[data]
name = "digits"
limit_train = 300
[teacher]
model = "tiny"
[teacher.train]
epochs = 1
[student]
model = "tiny"
width = 8
[distill]
baseline = false
[distill.train]
epochs = 1
[quantize]
mode = "ptq"
calibrator = "minmax"
[export]
min_agreement = 0.0
[bench]
queries = 70
max_seconds = 3.0
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("project") / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    out = recipe.parent / "runs" / "small"
    assert main(["run", str(recipe), "--out", str(out), "--quiet", "--json"]) == 0
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    found = sorted(run.glob("export-*/model.onnx"))
    assert len(found) == 1
    return found[0]


def _json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    code = main([*arguments, "--json"])
    shown = capsys.readouterr()
    return code, json.loads(shown.out)


def test_run_again_redoes_nothing(run: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = _json(["run", str(recipe), "--out", str(run)], capsys)
    assert code == 0
    assert report["verdict"]["overall"] == "PASS"
    assert {row["cached"] for row in report["stages"]} == {True}
    expected = list(planned(load_recipe(recipe), "report"))
    assert [row["stage"] for row in report["stages"]] == expected


@pytest.mark.parametrize(("verb", "last"), [("train", "teacher"), ("distill", "quality"), ("quantize", "int8_ptq")])
def test_single_stage_stops_there(
    verb: str, last: str, run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert main([verb, str(recipe), "--out", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert lines[-1].startswith(f"[{last}")
    assert lines[-1].endswith("already there")
    expected = planned(load_recipe(recipe), verb)  # type: ignore[arg-type]
    assert [line.split("]")[0][1:] for line in lines] == list(expected)


def test_check_does_no_work(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, plan = _json(["run", str(recipe), "--check", "--out", str(tmp_path / "run")], capsys)
    assert code == 0
    assert plan["data"]["classes"] == 10
    assert not (tmp_path / "run").exists()
    assert main(["run", str(recipe), "--check"]) == 0
    assert "data.classes" in capsys.readouterr().out


def test_default_folder_is_named_after_the_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(recipe), "--set", "name=other", "-q"]) == 0
    assert (tmp_path / "runs" / "other" / "report.json").is_file()
    assert "runs/other/report.html" in capsys.readouterr().out


def test_set_reports_every_problem_of_the_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--set", "distill.metod=x", "--set", "bench.budget_ms=soon"]) == 2
    shown = capsys.readouterr().err
    assert "2 problems" in shown
    assert "Did you mean 'method'?" in shown
    assert "bench.budget_ms" in shown


def test_report_writes_the_page_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    shown = capsys.readouterr().out
    assert "PASS" in shown
    assert "report.html" in shown
    code, report = _json(["report", str(run)], capsys)
    assert (code, report["schema_version"]) == (0, 1)


def test_show_of_a_run_has_its_lineage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "made from" in shown
    assert "Accuracy ladder" in shown


def test_show_of_an_artifact_has_its_manifest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(model.parent)]) == 0
    shown = capsys.readouterr().out
    for text in ("model.onnx", "quantized", "float32", "SHA-256"):
        assert text in shown
    code, manifest = _json(["show", str(model.parent)], capsys)
    assert (code, manifest["kind"]) == (0, "exported")
    assert main(["show", str(model.parent.parent / "nothing")]) == 3


def test_verify_is_3_when_a_file_is_damaged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _json(["verify", str(run)], capsys)[1]["ok"] is True
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    weights = next(copy.glob("teacher-*/model.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, found = _json(["verify", str(copy)], capsys)
    assert (code, found["ok"]) == (3, False)
    damaged = [row["path"] for row in found["artifacts"] if not row["ok"]]
    assert weights.parent.name in damaged
    assert main(["verify", str(copy)]) == 3
    assert "DAMAGED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "verdict"),
    [
        (["--budget-ms", "500"], 0, "PASS"),
        (["--budget-ms", "0.0001"], 1, "FAIL"),
        (["--queries", "5"], 5, "INCONCLUSIVE"),
    ],
)
def test_bench_of_a_file_ends_with_its_verdict(
    more: list[str], code: int, verdict: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, report = _json(["bench", str(model), "--queries", "70", "-q", *more], capsys)
    assert (ended, report["verdict"]["overall"]) == (code, verdict)


def test_bench_options_override_the_recipe(
    run: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    code, report = _json(["bench", str(recipe), "--out", str(tmp_path / "run"), "--budget-ms", "0.0001"], capsys)
    assert code == 1
    assert report["recipe"]["bench"]["budget_ms"] == 0.0001


def test_bench_names_every_wrong_option(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(model), "--budget-ms", "-3", "--profile", "fast"]) == 2
    shown = capsys.readouterr().err
    assert "--budget-ms: input should be greater than 0, got -3.0" in shown
    assert "--profile: input should be 'default' or 'mobile', got 'fast'" in shown


def test_bench_refuses_what_does_not_apply(model: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(model), "--out", "x", "--set", "a=1"]) == 2
    assert "--set, --out belong to recipes" in capsys.readouterr().err
    assert main(["bench", str(recipe), "--target", "tensorrt"]) == 2
    assert "--target is for ONNX files" in capsys.readouterr().err


def test_bench_of_a_file_that_is_no_model_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    assert main(["bench", str(broken)]) == 3
    assert "broken.onnx" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["budget_ms", "percentile", "confidence", "threads", "batch", "queries", "device"])
def test_help_repeats_the_defaults_of_the_protocol(key: str) -> None:
    declared: dict[str, Any] = {
        "budget_ms": bench_options.BudgetMs,
        "percentile": bench_options.Percentile,
        "confidence": bench_options.Confidence,
        "threads": bench_options.Threads,
        "batch": bench_options.Batch,
        "queries": bench_options.Queries,
        "device": bench_options.Device,
    }
    default = BenchSettings.model_fields[key].default
    text = default if isinstance(default, str) else f"{default:g}"
    assert f", {text} by default." in declared[key].__metadata__[0].help.replace("), ", ", ")


def test_list_has_every_member_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = _json(["list"], capsys)
    assert code == 0
    assert set(found) == set(CATALOGS) == set(options._CATALOGS)
    for name, catalog in CATALOGS.items():
        assert [row["name"] for row in found[name]] == catalog.names()
        assert all(row["summary"].endswith(".") for row in found[name]), name
    assert main(["list", "losses"]) == 0
    assert "kd" in capsys.readouterr().out


def test_list_shows_the_options_of_one_member(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = _json(["list", "losses", "kd"], capsys)
    assert code == 0
    options = [(row["option"], row["default"]) for row in found["options"]]
    assert options == [("tau", 4.0), ("standardize", False), ("more_taus", [])]
    assert main(["list", "losses", "kdd"]) == 2
    assert "Did you mean 'kd'" in capsys.readouterr().err


def test_init_writes_a_recipe_that_is_valid_and_refuses_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my-project"
    assert main(["init", str(folder)]) == 0
    assert f"Next: edgekd run {folder / 'recipe.toml'}" in capsys.readouterr().out
    assert load_recipe(folder / "recipe.toml").name == "digits"
    assert main(["init", str(folder)]) == 2
    assert "has recipe.toml, recipe.schema.json, .gitignore already" in capsys.readouterr().err
    code, written = _json(["init", str(tmp_path / "second")], capsys)
    assert code == 0
    assert tomllib.loads(Path(written["written"][0]).read_text())["name"] == "digits"


def test_doctor_says_that_the_main_path_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr()
    assert "Everything that edgekd needs works here." in shown.out
    assert max(len(line) for line in shown.out.splitlines() if not line.startswith(("Warning", "Problem"))) <= 80
    assert not shown.err
    code, found = _json(["doctor"], capsys)
    assert (code, found["problems"]) == (0, [])
