"""Real processes killed in the middle of real training: nothing half made is taken for whole, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pipeline.conftest import TARGET, Listener, artifact_of, hidden

from edgekd import pipeline
from edgekd.engine import FitResult
from edgekd.recipe import load_recipe

RECIPE = """
name = "crash"

[compute]
device = "cpu"
threads = 1

[data]
name = "synthetic"
classes = 4
samples = 400
test_samples = 60
size = [8, 8]

[teacher]
model = "tiny"
width = 6

[teacher.train]
epochs = 14
batch_size = 32
lr = 0.02

[student]
model = "tiny"
width = 4

[distill]
baseline = false

[distill.train]
epochs = 14
batch_size = 32
lr = 0.02

[quantize]
mode = "ptq"
calibration_samples = 64

[bench]
queries = 64
max_seconds = 5.0
"""

# A process that has imported everything and computed nothing, so that each run is a cheap and clean fork of it. It
# reads one line a run: the signal, the stage whose next checkpoint it waits for, and how long it then waits.
NURSERY = """
import json, os, signal, sys, time
from pathlib import Path
import edgekd.pipeline, edgekd.report
from edgekd.cli.main import main

recipe, out = sys.argv[1:]
print("ready", flush=True)


def checkpoints(stage):
    return [path.stat().st_mtime_ns for path in Path(out).glob(f".checkpoints/{stage}-*.pt")]


for line in sys.stdin:
    order = json.loads(line)
    before = checkpoints(order["stage"])
    child = os.fork()
    if child == 0:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(main(["run", recipe, "--out", out]))
    limit = time.monotonic() + 60
    while checkpoints(order["stage"]) in ([], before):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended or time.monotonic() > limit:
            sys.exit(f"no checkpoint of {order['stage']} was seen; {open(order['log']).read()}")
        time.sleep(0.002)
    time.sleep(order["wait"])
    os.kill(child, order["signal"])
    status = os.waitpid(child, 0)[1]
    print(json.dumps({"killed": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
                      "code": os.waitstatus_to_exitcode(status)}), flush=True)
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "crash.toml").write_text(RECIPE)
    return tmp_path / "crash.toml"


def history(out: Path, stage: str) -> FitResult:
    return FitResult.model_validate_json(artifact_of(out, stage).file("history.json").read_bytes())


def sound(out: Path) -> bool:
    """Whether all that is sealed is whole; a run may have been killed before it sealed anything."""
    return not list(out.glob("[!.]*/manifest.json")) or all(row["ok"] for row in pipeline.verify(out))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="killing a process by a signal needs a POSIX system")
def test_run_that_is_killed_again_and_again_ends_whole(recipe_file: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    # just after a checkpoint or somewhere in the epoch after it; what the machine does meanwhile is chance enough
    orders: list[dict[str, Any]] = [
        {"signal": signal.SIGKILL, "stage": "teacher", "wait": 0.0},
        {"signal": signal.SIGKILL, "stage": "teacher", "wait": 0.06},
        {"signal": signal.SIGINT, "stage": "student", "wait": 0.03},
        {"signal": signal.SIGTERM, "stage": "student", "wait": 0.0},
        {"signal": signal.SIGKILL, "stage": "student", "wait": 0.02},
    ]
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(recipe_file), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        assert nursery.stdout.readline() == "ready\n"
        for order in orders:
            nursery.stdin.write(json.dumps({**order, "log": str(log)}) + "\n")
            nursery.stdin.flush()
            answer = nursery.stdout.readline()
            assert answer, log.read_text()
            ended, said = json.loads(answer), log.read_text()
            if order["signal"] == signal.SIGKILL:
                assert ended["killed"] == signal.SIGKILL, said
            else:
                assert ended["code"] == {signal.SIGINT: 130, signal.SIGTERM: 143}[order["signal"]], said
                assert "the same command goes on where it stopped" in said
                assert not [name for name in hidden(out) if name.endswith((".partial", ".old"))]
            assert "Traceback" not in said
            assert sound(out)
        nursery.stdin.close()

    listener = Listener()
    result = pipeline.run(load_recipe(recipe_file), out=out, recipe_file=recipe_file, watcher=listener)
    assert listener.stages[:2] == [("teacher", True), ("student", False)]
    assert [rung.rung for rung in result.report.ladder] == ["teacher", "student", "int8_ptq", "onnx_float", "onnx_int8"]
    assert pipeline.open_report(out) == result.report
    assert [row["ok"] for row in pipeline.verify(out)] == [True] * 6
    assert hidden(out) == [".lock"]
    for stage in ("teacher", "student"):
        done = history(out, stage)
        assert done.resumed_at >= (2 if stage == "teacher" else 3), "an epoch was done before each stop"
        assert [record.epoch for record in done.history] == list(range(14))
    # what was made of many pieces is what one piece gives
    whole = pipeline.run(load_recipe(recipe_file), out=tmp_path / "whole", recipe_file=recipe_file, until="distill")
    assert {row.stage: row.id for row in whole.report.lineage} == {
        stage: artifact_of(out, stage).id for stage in ("teacher", "student", "quality")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_command_stopped_at_any_moment_goes_on(recipe_file: Path, tmp_path: Path, number: int, code: int) -> None:
    """The command itself, from its first import on: six moments of a run of some twenty seconds."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edgekd.cli", "run", str(recipe_file), "--out", str(out)]
    codes = []
    for seconds in (1.0, 6.0, 9.0, 11.0, 14.0, 17.0):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            time.sleep(seconds)
            process.send_signal(number)
            try:
                _, said = process.communicate(timeout=60)
            finally:
                process.kill()  # one that does not stop must not hold up everything else
            codes.append(process.returncode)
        assert sound(out)
        assert "Traceback" not in said
    # what arrives while Python itself ends is not ours to answer; a shell says 128 + number of it all the same
    assert set(codes) <= {code, 0, -number}
    assert codes[0] in (code, -number)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 5), done.stderr
    assert all(row["ok"] for row in pipeline.verify(out))
    assert hidden(out) == [".lock"]
    assert artifact_of(out, f"export-{TARGET}").file("model.onnx").is_file()
