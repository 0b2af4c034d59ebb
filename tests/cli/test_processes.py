from __future__ import annotations

import json
import time

import pytest

from edgekd.cli import processes
from edgekd.cli.progress import watching
from edgekd.cli.render import Failure, Outcome

OUTCOME = Outcome(False, str, lambda: ["the result"], 5)


@pytest.fixture(params=[0, 1])
def rank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One of two processes."""
    for name, value in (("RANK", request.param), ("WORLD_SIZE", 2), ("LOCAL_RANK", request.param)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(processes, "_PATIENCE_SECONDS", 0.01)
    return int(request.param)


def test_result_is_the_main_processes_and_the_exit_code_everybodys(rank, capsys):
    assert processes.shown(OUTCOME) == 5
    assert capsys.readouterr().out == ("the result\n" if rank == 0 else "")


def test_error_that_is_left_carries_the_processes_number(rank, capsys):
    assert processes.told(Failure("DataError", "image 7 is damaged.", 3), as_json=False) == 3
    said = capsys.readouterr().err
    assert said == ("Error: image 7 is damaged.\n" if rank == 0 else "Error: process 1 of 2: image 7 is damaged.\n")


def test_error_is_json_with_the_number_in_its_message(rank, capsys):
    processes.told(Failure("DataError", "no.", 3), as_json=True)
    told = json.loads(capsys.readouterr().err)["error"]
    assert told == {"type": "DataError", "message": "no." if rank == 0 else "process 1 of 2: no.", "exit_code": 3}


@pytest.mark.parametrize("code", [130, 143])
def test_stop_is_told_by_the_main_process_alone(rank, code, capsys):
    assert processes.told(Failure("Interrupted", "kept.", code, heading="Interrupted"), as_json=False) == code
    assert capsys.readouterr().err == ("Interrupted: kept.\n" if rank == 0 else "")


def test_ctrl_c_while_waiting_is_no_traceback(rank, capsys, monkeypatch):
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    assert processes.told(Failure("DataError", "no.", 3), as_json=False) == 3
    assert capsys.readouterr().err == ("Error: no.\n" if rank == 0 else "")


def test_progress_is_the_main_processes(rank, capsys):
    with watching(quiet=False) as watcher:
        watcher.plan({})
        watcher.stage("teacher", cached=False)
        watcher.progress(1, 2, "epoch 1/2")
        watcher.message("something to know")
    said = capsys.readouterr().err
    assert ("[teacher] started" in said) is (rank == 0)
    assert ("something to know" in said) is (rank == 0)
