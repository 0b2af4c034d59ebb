"""`edgekd cache` as it is typed: what it prints, what it gives as JSON, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekd.cli.main import main

RECIPE = """
name = "small"
[compute]
device = "cpu"
threads = 1
[data]
name = "synthetic"
classes = 4
samples = 120
size = [8, 8]
[data.augment]
flip = true
[teacher]
model = "tiny"
width = 4
[teacher.train]
epochs = 1
batch_size = 32
[student]
model = "tiny"
width = 3
[distill]
baseline = false
[distill.train]
epochs = 3
batch_size = 32
[distill.cache]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe whose cache is built but for one epoch."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "recipe.toml").write_text(RECIPE)
    assert main(["cache", "build", *_where(folder), "--epochs", "0-1", "--quiet", "--json"]) == 0
    return folder


def _where(folder: Path) -> list[str]:
    return [str(folder / "recipe.toml"), "--out", str(folder / "run")]


def _json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_build_makes_the_teacher_and_goes_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list((project / "run").glob("teacher-*/manifest.json"))) == 1
    [built] = _json(["cache", "build", *_where(project), "--quiet"], capsys)["caches"]
    assert (built["role"], built["rows"], built["epochs"], built["bytes_per_view"]) == ("teacher", 108, 3, 24)
    [again] = _json(["cache", "build", *_where(project), "--part", "2/3", "--quiet"], capsys)["caches"]
    assert (again["rows"], again["epochs"]) == (0, 1)
    assert main(["cache", "build", *_where(project), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "bytes a view" in shown
    assert "24" in shown


def test_show_takes_a_recipe_or_a_place(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [found] = _json(["cache", "show", *_where(project)], capsys)["caches"]
    assert found["epochs"][:2] == [0, 1]
    assert found["fingerprint"]["augment"]["flip"] is True
    assert found["share_of_dense"] == 24 / 16
    for place in (str(project / "run"), found["where"], f"file://{found['where']}"):
        [same] = _json(["cache", "show", place], capsys)["caches"]
        assert same["size_bytes"] == found["size_bytes"]
    assert main(["cache", "show", *_where(project)]) == 0
    shown = capsys.readouterr().out
    assert "0-2" in shown
    assert "answers.augment.flip" in shown
    assert "150 %" in shown


def test_verify_counts_and_finds_damage(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(["cache", "verify", *_where(project), "--samples", "20", "--quiet"], capsys)
    assert found["ok"] is True
    assert found["caches"][0]["rows"] == 20
    assert main(["cache", "verify", *_where(project), "--quiet"]) == 0
    assert "views asked again" in capsys.readouterr().out
    shard = next((project / "run" / "cache").rglob("shard-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert main(["cache", "verify", *_where(project), "--quiet"]) == 3
        assert f"{shard} is damaged" in capsys.readouterr().err
    finally:
        shard.write_bytes(whole)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--part", "1-4"], "--part must be like 1/4, got '1-4'."),
        (["--part", "4"], "--part must be like 1/4, got '4'."),
        (["--part", "5/4"], "--part 5/4: the parts are 1/4 to 4/4."),
        (["--epochs", "a-b"], "--epochs must be like 0-9, got 'a-b'."),
        (["--epochs", "2-9"], "--epochs 2-9: the views of this recipe are the epochs 0 to 2."),
        (["--set", "distill.method='mutual'"], "the method 'mutual' asks no teacher"),
    ],
)
def test_wrong_usage_is_2_and_one_sentence(
    project: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "build", *_where(project), "--quiet", *arguments]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown


def test_a_recipe_without_the_table_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = project / "other.toml"
    other.write_text(RECIPE.replace("[distill.cache]\n", ""))
    for verb in ("build", "verify", "show"):
        assert main(["cache", verb, str(other)]) == 2
        assert "has no table [distill.cache]" in capsys.readouterr().err


def test_nothing_there_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "show", str(tmp_path)]) == 3
    assert f"There is no cache at {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["build", "verify", "show"])
def test_help_has_an_example_and_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys; from edgekd.cli.main import main\n"
        f"assert main(['cache', '{verb}', '--help']) == 0\n"
        "heavy = ('torch', 'numpy', 'edgekd.recipe', 'fsspec')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "[]"
    assert f"\n  edgekd cache {verb} recipe.toml" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80


def test_help_of_the_group_names_each_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "\n  edgekd cache build recipe.toml" in shown
    assert "..." not in shown.split("Commands:")[1]
