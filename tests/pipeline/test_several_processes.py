"""A recipe carried out by two processes that a launcher started: the same results, written once, told once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
from pipeline.conftest import SMALL, artifact_of, hidden, merged

from edgekd import pipeline
from edgekd.errors import ArtifactError
from edgekd.pipeline._claim import await_artifact
from edgekd.recipe import load_recipe

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the launcher over gloo needs a POSIX system")

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes", "2")
EDGEKD = ("-m", "edgekd.cli")
CLOSE = 1e-5
"""Of weights: rows are summed in another order."""

ODD = """
import os, sys
import edgekd.pipeline._training as training
from edgekd.cli.main import main
from edgekd.errors import DataError

rank, what, *arguments = sys.argv[1:]
if os.environ["RANK"] == rank:
    if what == "seed":
        arguments += ["--set", "seed=1"]
    else:
        fit = training.fit

        def broken(*values, **options):
            def progress(tick):
                if tick.step == 5:
                    raise DataError("image 7 is damaged.")
            return fit(*values, **{**options, "progress": progress})

        training.fit = broken
sys.exit(main(arguments))
"""


def quoted(table: Mapping[str, Any], name: str = "") -> str:
    """A nested table as TOML."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    own = [f"{key} = {json.dumps(value)}" for key, value in table.items() if key not in inner]
    head = [f"[{name}]"] if name and own else []
    return "\n".join([*head, *own, *(quoted(value, f"{name}.{key}".lstrip(".")) for key, value in inner.items())])


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(quoted(SMALL))
    return path


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A command in which one process does something else than the other."""
    path = tmp_path / "odd.py"
    path.write_text(ODD)
    return path


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def launched(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def errors(text: str) -> list[str]:
    """What edgekd's processes said went wrong; the launcher adds a report of its own."""
    return [line for line in text.splitlines() if line.startswith("Error: ")]


def check_same(ours: Path, theirs: Path, stages: Sequence[str]) -> None:
    """Two runs' folders hold the same networks, but for the order of sums."""
    for stage in stages:
        weights = [
            safetensors.torch.load_file(artifact_of(out, stage).file("model.safetensors")) for out in (ours, theirs)
        ]
        assert list(weights[0]) == list(weights[1])
        for name, value in weights[0].items():
            assert float((value.double() - weights[1][name].double()).abs().max()) < CLOSE, f"{stage}: {name}"


def test_float_stages_are_those_of_one_process(recipe_file: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = pipeline.run(load_recipe(recipe_file), out=one, recipe_file=recipe_file, until="distill")
    done = launched(*TORCHRUN, *EDGEKD, "distill", recipe_file, "--out", two, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # one document: one process spoke
    assert report == json.loads((two / "report.json").read_text())
    assert [line for line in done.stderr.splitlines() if line == "[student] started"] == ["[student] started"]
    assert [(rung["rung"], rung["value"]) for rung in report["ladder"]] == [
        (rung.rung, pytest.approx(rung.value, abs=0.0126)) for rung in alone.report.ladder
    ], "a sample of 80 may fall on the other side"
    assert all(row["ok"] for row in pipeline.verify(two))
    assert hidden(two) == hidden(one)
    check_same(one, two, ["teacher", "student_alone", "student"])


@pytest.mark.slow
def test_mistake_is_told_once(tmp_path: Path) -> None:
    done = launched(*TORCHRUN, *EDGEKD, "run", tmp_path / "missing.toml")
    assert done.returncode != 0
    assert errors(done.stderr) == [f"Error: {tmp_path / 'missing.toml'}: 1 problem"]
    assert done.stdout == ""


def test_folder_that_is_not_seen_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.pipeline._claim._SEEN_SECONDS", 0.0)
    with pytest.raises(ArtifactError, match=r"does not see it\. Put the run's folder on storage that every host"):
        await_artifact(tmp_path / "teacher-00000000")
    (tmp_path / "manifest.json").touch()
    await_artifact(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_whole_recipe_is_that_of_one_process(
    finished: pipeline.RunResult, recipe_file: Path, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    out = tmp_path / "two"
    done = launched(*launcher, *EDGEKD, "run", recipe_file, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    report = pipeline.open_report(out)
    assert json.loads(done.stdout)["ladder"] == json.loads((out / "report.json").read_text())["ladder"]
    for ours, theirs in zip(report.ladder, finished.report.ladder, strict=True):
        assert ours.rung == theirs.rung
        assert ours.value == pytest.approx(theirs.value, abs=0.0126)
        assert ours.nll == pytest.approx(theirs.nll, abs=1e-4)
    assert all(row["ok"] for row in pipeline.verify(out))
    assert hidden(out) == hidden(finished.out)
    check_same(finished.out, out, ["teacher", "student_alone", "student", "int8_ptq-onnxruntime_x86"])
    again = launched(*launcher, *EDGEKD, "run", recipe_file, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "[bench-onnxruntime_x86] already there" in again.stderr
    assert "started" not in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "what", "said"),
    [
        ("0", "breaks", ["Error: image 7 is damaged."]),
        ("1", "breaks", ["Error: process 1 of 2: image 7 is damaged.", "Error: Another process of this run ended"]),
        ("1", "seed", ["Error: process 1 of 2: Process 1 would make another teacher", "Error: Another process of"]),
    ],
)
def test_trouble_of_one_process_ends_all(
    recipe_file: Path, odd: Path, tmp_path: Path, rank: str, what: str, said: list[str]
) -> None:
    out = tmp_path / "out"
    begun = time.monotonic()
    done = launched(*TORCHRUN, odd, rank, what, "train", recipe_file, "--out", out)
    assert done.returncode != 0
    assert time.monotonic() - begun < 120, "nobody waits for what does not come"
    found = errors(done.stderr)
    # a main process that the launcher ended before it noticed says nothing
    assert 1 <= len(found) <= len(said)
    assert all(line.startswith(words) for line, words in zip(found, said, strict=False))
    assert not list(out.glob("teacher-*"))
    assert not list(out.glob(".*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_training_goes_on_bit_for_bit(recipe_file: Path, tmp_path: Path, number: signal.Signals) -> None:
    longer = ("train", recipe_file, "--set", "teacher.train.epochs=15", "--out")
    undisturbed = launched(*TORCHRUN, *EDGEKD, *longer, tmp_path / "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr
    out = tmp_path / "out"
    command = [sys.executable, *TORCHRUN, *EDGEKD, *map(str, longer), str(out)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment(), stdout=quiet, stderr=quiet) as launcher:
        _await(lambda: bool(list(out.glob(".checkpoints/teacher-*.pt"))))
        if number == signal.SIGKILL:
            # the main process, at any moment: the launcher ends the other
            next(one for one in psutil.Process(launcher.pid).children() if one.environ()["RANK"] == "0").kill()
        else:
            launcher.send_signal(number)
        assert launcher.wait(timeout=120) != 0
    assert not list(out.glob("teacher-*"))
    done = launched(*TORCHRUN, *EDGEKD, *longer, out)
    assert done.returncode == 0, done.stderr
    weights = [artifact_of(folder, "teacher").file("model.safetensors") for folder in (tmp_path / "whole", out)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    history = json.loads(artifact_of(out, "teacher").file("history.json").read_text())
    assert history["resumed_step"] > 0


def _await(ready: Callable[[], bool], seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_recipe_of_these_tests_is_the_small_one(recipe_file: Path, small_recipe: Callable[..., Any]) -> None:
    assert load_recipe(recipe_file).resolved() == small_recipe(merged({}, {})).resolved()
