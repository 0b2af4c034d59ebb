"""`edgekd distill --sweep`: options in, a ranking out, and help without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.cli.main import main

RECIPE = """
name = "small"
[compute]
threads = 1
[data]
name = "synthetic"
classes = 3
samples = 90
test_samples = 30
size = [8, 8]
[teacher]
model = "tiny"
width = 3
[teacher.train]
epochs = 1
[student]
model = "tiny"
width = 2
[distill]
losses = [{ name = "cross_entropy", weight = 0.1 }, { name = "kd", weight = 0.9 }]
[distill.train]
epochs = 1
"""
TAUS = ["--sweep", "distill.losses.1.tau=1,4"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_sweep_is_shown_and_written(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = recipe.parent / "out"
    assert main(["distill", str(recipe), *TAUS, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    lines = [line.split()[0] for line in shown.out.splitlines() if line.strip()]
    assert [line for line in lines if line in ("alone", "1", "2")] == ["alone", "1", "2"]
    assert f"Sweep: {out / 'sweep.md'}" in shown.out
    assert "[2/2 student] done" in shown.err
    assert main(["distill", str(recipe), *TAUS, "--out", str(out), "--json", "-q"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads((out / "sweep.json").read_text())
    assert len(json.loads(shown.out)["rows"]) == 2


def test_check_of_a_sweep_does_no_work(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe.parent)
    grid = recipe.parent / "grid.toml"
    grid.write_text("distill.losses.1.tau = [1.0, 2.0, 4.0]\n")
    assert main(["distill", str(recipe), "--sweep", str(grid), "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["combinations"] == 3
    assert not (recipe.parent / "runs").exists()
    assert main(["distill", str(recipe), "--sweep", str(grid), "--check"]) == 0
    assert "combinations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--sweep", "distill.metod=a,b"], "Did you mean 'method'?"),
        (["--sweep", "student.width="], "The grid of the sweep is empty"),
        ([*TAUS, "--max-combinations", "1"], "2 combinations, more than 1"),
        (["--max-combinations", "300"], "--max-combinations belongs to --sweep"),
        (["--sweep", "nowhere.toml"], "No such file"),
        (["--sweep", "seed=1,2"], "A sweep cannot change 'seed'"),
    ],
)
def test_wrong_sweep_is_2_and_named(
    recipe: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", str(recipe), *more, "--out", str(recipe.parent / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (recipe.parent / "out").exists()


def test_help_of_distill_imports_no_torch() -> None:
    code = "import sys; from edgekd.cli.main import main; main(['distill', '--help']); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "False"
    assert "--sweep" in ended.stdout
