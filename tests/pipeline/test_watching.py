"""_watching and _trackers: what a run writes while it works, and that nothing of it can stop the run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edgekd import _trackers
from edgekd._ledger import TermMean
from edgekd._step_clock import StepProfile
from edgekd._trackers import Tracker, usable
from edgekd.engine import EpochRecord, Tick
from edgekd.errors import BackendMissing
from edgekd.pipeline import RunResult
from edgekd.pipeline._watching import PeakMemory, Watching, note_of
from edgekd.recipe import Recipe, WatchSettings, parse_recipe

MIB = 2**20


@pytest.fixture(autouse=True)
def _accelerate_has_its_state() -> None:
    """As in a run, where a training sets it up before the first step."""
    from accelerate import PartialState

    PartialState(cpu=True)


def recipe(**watch: Any) -> Recipe:
    return parse_recipe(
        {"name": "small", "teacher": {"model": "tiny"}, "student": {"model": "tiny"}, "watch": watch}, folder=None
    )


def tick(step: int, loss: float | None = 0.5, speed: float | None = 1000.0) -> Tick:
    return Tick(step, 6, (step - 1) // 3, 2, loss, 0.1 / step, speed)


def record(epoch: int, profile: StepProfile | None = None) -> EpochRecord:
    terms = {"kd": TermMean(raw=2.0 / (epoch + 1), weighted=1.0 / (epoch + 1)), "hint": TermMean(raw=3.0, weighted=0.3)}
    return EpochRecord(epoch=epoch, terms=terms, loss=1.5, lr=0.01, val=0.25 * epoch, seconds=2.0, profile=profile)


def journal(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def train(watching: Watching, *, steps: range = range(1, 7)) -> None:
    for step in steps:
        watching.on_step(tick(step))
        if step % 3 == 0:
            watching.on_epoch(record(step // 3 - 1, StepProfile(steps=3, images=96, seconds={"forward": 0.5})))


@pytest.fixture
def messages() -> list[str]:
    return []


def test_journal_tells_stages_steps_and_epochs(tmp_path: Path, messages: list[str]) -> None:
    watching = Watching(tmp_path / "run", recipe(every_seconds=0.0, trackers=[]), messages.append)
    assert not (tmp_path / "run").exists()
    watching.already_there("teacher", "teacher-0a1b2c3d")
    with watching.stage("student", "student-01234567") as memory:
        train(watching)
    cached, started, *middle, ended = journal(tmp_path / "run")
    for line in (cached, started, *middle, ended):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("utc"))
    assert cached == {
        "event": "stage", "stage": "teacher", "state": "done", "folder": "teacher-0a1b2c3d", "cached": True,
        "seconds": 0.0,
    }  # fmt: skip
    assert started == {
        "event": "stage", "stage": "student", "state": "started", "folder": "student-01234567", "cached": False
    }  # fmt: skip
    assert ended.pop("seconds") >= 0
    assert ended.pop("peak_memory_mib", 0) == pytest.approx(memory.mib().get("peak_memory_mib", 0), abs=20)
    assert ended == {**started, "state": "done"}
    assert [line["event"] for line in middle] == ["step"] * 3 + ["epoch"] + ["step"] * 3 + ["epoch"]
    assert middle[1] == {
        "event": "step", "stage": "student", "folder": "student-01234567", "step": 2, "steps": 6,
        "epoch": 1, "loss": 0.5, "lr": 0.05, "images_per_s": 1000.0,
    }  # fmt: skip
    assert middle[-1] == {
        "event": "epoch", "stage": "student", "folder": "student-01234567", "epoch": 2, "step": 6, "loss": 1.5,
        "terms": {"raw": {"kd": 1.0, "hint": 3.0}, "weighted": {"kd": 0.5, "hint": 0.3}},
        "val_accuracy": 0.25, "lr": 0.01, "seconds": 2.0, "images_per_s": 192.0, "profile": {"forward": 0.5},
    }  # fmt: skip
    assert messages == []


def test_steps_are_written_at_most_so_often(tmp_path: Path, messages: list[str]) -> None:
    watching = Watching(tmp_path, recipe(every_seconds=0.2, trackers=[]), messages.append)
    with watching.stage("student", "student-01234567"):
        started = time.monotonic()
        for step in range(1, 7):
            watching.on_step(tick(step))
            time.sleep(0.07)
        passed = time.monotonic() - started
    steps = [line["step"] for line in journal(tmp_path) if line["event"] == "step"]
    assert steps[0] == 1
    assert 2 <= len(steps) <= 1 + passed / 0.2
    watching.on_step(tick(7))  # between two stages there is nothing to tell
    assert [line["step"] for line in journal(tmp_path) if line["event"] == "step"] == steps


@pytest.mark.parametrize(("error", "state"), [(ValueError, "failed"), (KeyboardInterrupt, "stopped")])
def test_end_of_a_stage_says_how_it_ended(
    tmp_path: Path, messages: list[str], error: type[BaseException], state: str
) -> None:
    watching = Watching(tmp_path, recipe(trackers=[]), messages.append)
    with pytest.raises(error), watching.stage("student", "student-01234567"):
        raise error
    assert journal(tmp_path)[-1]["state"] == state


def test_journal_that_cannot_be_written_is_left_out(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    watching = Watching(tmp_path, recipe(trackers=[]), messages.append)
    with watching.stage("student", "student-01234567"):
        train(watching)
    [message] = messages
    assert re.search(r"metrics\.jsonl is not written any more: Is a directory\. The run goes on\.", message)


def test_process_that_is_not_the_main_one_writes_nothing(
    tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd._group.is_main", lambda: False)
    watching = Watching(tmp_path, recipe(trackers=["tensorboard", "wandb"]), messages.append)
    with watching.stage("student", "student-01234567"):
        train(watching)
    assert list(tmp_path.iterdir()) == []
    assert messages == []


# TensorBoard, read back by its own reader


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(folder), purge_orphaned_data=True)
    reader.Reload()
    return {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_has_every_scalar_of_every_stage(tmp_path: Path, messages: list[str]) -> None:
    watching = Watching(tmp_path, recipe(every_seconds=0.0), messages.append)
    for stage in ("teacher", "student"):
        with watching.stage(stage, f"{stage}-01234567"):
            train(watching)
    assert messages == []
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == [
        "student-01234567",
        "teacher-01234567",
    ]
    found = scalars(tmp_path / "tensorboard" / "student-01234567")
    assert found.keys() == {
        "loss/kd", "loss/hint", "loss/total", "val_accuracy", "lr", "images_per_s",
        "step/loss", "step/lr", "step/images_per_s",
    }  # fmt: skip
    assert found["loss/kd"] == [(3, 1.0), (6, 0.5)]
    assert found["loss/total"] == [(3, 1.5), (6, 1.5)]
    assert found["val_accuracy"] == [(3, 0.0), (6, 0.25)]
    assert found["images_per_s"] == [(3, 192.0), (6, 192.0)]
    assert [step for step, _ in found["step/lr"]] == [1, 2, 3, 4, 5, 6]
    assert found["step/lr"][3][1] == pytest.approx(0.025)


def test_steps_that_are_done_again_after_a_resume_replace_those_before(tmp_path: Path, messages: list[str]) -> None:
    first = Watching(tmp_path, recipe(every_seconds=0.0), messages.append)
    with first.stage("student", "student-01234567"):
        train(first, steps=range(1, 6))
    again = Watching(tmp_path, recipe(every_seconds=0.0), messages.append)
    with again.stage("student", "student-01234567"):
        train(again, steps=range(4, 7))
    found = scalars(tmp_path / "tensorboard" / "student-01234567")
    assert [step for step, _ in found["step/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in found["val_accuracy"]] == [3, 6]


def test_tracker_that_fell_behind_is_at_its_end_when_the_stage_is(
    tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trackers, "_MOST_WAITING", 3)
    watching = Watching(tmp_path, recipe(every_seconds=0.0), messages.append)
    with watching.stage("student", "student-01234567"):
        while not messages:
            train(watching)
        assert "is 3 entries behind" in messages[0]
    assert not [thread for thread in threading.enumerate() if thread.name == "tensorboard tracker"]
    assert len(messages) == 1


def test_value_that_is_not_known_is_left_out(tmp_path: Path, messages: list[str]) -> None:
    watching = Watching(tmp_path, recipe(), messages.append)
    with watching.stage("student", "student-01234567"):
        watching.on_step(tick(1, loss=None, speed=None))
        watching.on_epoch(record(0).model_copy(update={"val": None}))
    assert scalars(tmp_path / "tensorboard" / "student-01234567").keys() == {
        "step/lr", "loss/kd", "loss/hint", "loss/total", "lr"
    }  # fmt: skip


def test_tensorboard_that_fails_is_left_out_with_one_message(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "tensorboard").write_text("a file is in the way", encoding="utf-8")
    watching = Watching(tmp_path, recipe(), messages.append)
    for stage in ("teacher", "student"):
        with watching.stage(stage, f"{stage}-01234567"):
            train(watching)
    [message] = messages
    assert re.fullmatch(
        r"The tracker 'tensorboard' failed \((FileExists|NotADirectory)Error: .*\) and is left out\. The run goes on\.",
        message,
    )
    assert [line["event"] for line in journal(tmp_path)].count("epoch") == 4


def test_full_disk_stops_no_training_and_leaves_nothing_open(small_disk: Path, messages: list[str]) -> None:
    watching = Watching(small_disk, recipe(every_seconds=0.0), messages.append)
    with watching.stage("student", "student-01234567"):
        train(watching)
        with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        for _ in range(200):
            train(watching)
    assert any("metrics.jsonl is not written any more: No space left on device" in one for one in messages)
    assert len(messages) <= 2
    # the fixture unmounts the disk, which fails if a file on it is open


# any tracker


class Service:
    """A service that works until some call of it, as accelerate's trackers look from outside."""

    def __init__(self, fails_at: int | None = None, wait: float = 0.0) -> None:
        self.calls, self.fails_at, self.wait = 0, fails_at, wait
        self.seen: list[tuple[dict[str, float], int]] = []
        self.facts: dict[str, Any] = {}
        self.finished = False

    def start(self) -> None:
        self._call()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.facts = values

    def log(self, values: dict[str, float], step: int) -> None:
        self._call()
        self.seen.append((values, step))

    def finish(self) -> None:
        self._call()
        self.finished = True

    def _call(self) -> None:
        time.sleep(self.wait)
        self.calls += 1
        if self.calls - 1 == self.fails_at:
            raise ConnectionError("no route to host\nmore words")


def test_tracker_gets_everything_in_order_and_ends() -> None:
    service = Service()
    tracker = Tracker("service", lambda: service, {"seed": "0"})  # type: ignore[arg-type,return-value]
    for step in range(200):
        tracker.log({"loss": step / 2}, step)
    tracker.close()
    assert service.seen == [({"loss": step / 2}, step) for step in range(200)]
    assert service.facts == {"seed": "0"}
    assert service.finished
    assert tracker.failure is None


@pytest.mark.parametrize("call", [0, 2, 4])
def test_tracker_that_fails_at_any_call_keeps_nobody(call: int) -> None:
    service = Service(fails_at=call)
    tracker = Tracker("service", lambda: service, {})  # type: ignore[arg-type,return-value]
    for step in range(3):
        tracker.log({"loss": 1.0}, step)
    tracker.close()
    assert tracker.failure == "ConnectionError: no route to host"
    tracker.log({"loss": 1.0}, 9)  # and is not asked again
    assert service.calls == call + 1


def test_tracker_that_is_slow_does_not_hold_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trackers, "_MOST_WAITING", 3)
    monkeypatch.setattr(_trackers, "_LAST_SECONDS", 0.2)
    tracker = Tracker("service", lambda: Service(wait=0.5), {})  # type: ignore[arg-type,return-value]
    started = time.monotonic()
    for step in range(9):
        tracker.log({"loss": 1.0}, step)
    assert time.monotonic() - started < 2.0, "nine entries of 0.5 s each were waited for"
    assert tracker.failure == "it is 3 entries behind"
    tracker.close()
    assert not tracker._thread.is_alive(), "the call it is in was waited for, not the entries behind it"
    slow = Tracker("service", lambda: Service(wait=2.0), {})  # type: ignore[arg-type,return-value]
    slow.close()
    assert slow.failure == "it did not end within 0 s"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def hide(name: str) -> None:
        monkeypatch.setattr(_trackers, "find_spec", lambda asked: None if asked == name else find_spec(asked))

    return hide


def test_missing_package_is_an_error_only_for_a_tracker_that_was_asked_for(
    tmp_path: Path, messages: list[str], without: Callable[[str], None]
) -> None:
    without("tensorboard")
    assert usable(WatchSettings()) == ([], [
        "The package 'tensorboard' is not installed, so nothing is written for it. metrics.jsonl has it all."
    ])  # fmt: skip
    Watching(tmp_path, recipe(every_seconds=1.0), messages.append)
    assert len(messages) == 1
    with pytest.raises(
        BackendMissing, match=r"'tensorboard' of watch\.trackers needs the package 'tensorboard', which"
    ):
        Watching(tmp_path, recipe(trackers=["tensorboard"]), messages.append)
    without("mlflow")
    with pytest.raises(BackendMissing, match=r"not installed\. Install edgekd\[mlflow\], or take it off the list\."):
        usable(WatchSettings(trackers=["tensorboard", "mlflow"]))
    assert usable(WatchSettings(trackers=["tensorboard", "tensorboard"])) == (["tensorboard"], [])


@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the package mlflow: edgekd[mlflow]")
def test_mlflow_has_a_run_for_every_stage(tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    watching = Watching(tmp_path / "run", recipe(trackers=["mlflow"], every_seconds=0.0), messages.append)
    for stage in ("teacher", "student"):
        with watching.stage(stage, f"{stage}-01234567"):
            train(watching)
    assert messages == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [experiment] = client.search_experiments(filter_string="name = 'small'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"teacher-01234567", "student-01234567"}
    student = runs["student-01234567"]
    assert student.info.status == "FINISHED"
    assert student.data.params["student.model"] == "tiny"
    history = client.get_metric_history(student.info.run_id, "loss/kd")
    assert [(one.step, one.value) for one in history] == [(3, 1.0), (6, 0.5)]
    assert len(client.get_metric_history(student.info.run_id, "step/loss")) == 6


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the package wandb: edgekd[wandb]")
def test_wandb_stays_offline_when_its_environment_says_so(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        import test_watching as t
        from accelerate import PartialState
        PartialState(cpu=True)
        watching = t.Watching(Path(sys.argv[1]), t.recipe(trackers=["wandb"], every_seconds=0.0), print)
        for stage in ("teacher", "student"):
            with watching.stage(stage, f"{stage}-01234567"):
                t.train(watching)
    """
    environment = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert "is left out" not in done.stdout
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert all(any(file.stat().st_size for file in run.glob("*.wandb")) for run in runs)


# a whole run


def test_run_writes_what_its_report_says(finished: RunResult) -> None:
    events, report = journal(finished.out), finished.report
    for stage in report.stages:
        own = [one for one in events if one["stage"] == stage.stage and one["event"] == "stage"]
        assert [one["state"] for one in own] == ["started", "done"]
        assert own[1].get("peak_memory_mib") == pytest.approx(stage.peak_memory_mib, abs=20)
        assert own[1]["seconds"] == pytest.approx(stage.seconds, abs=0.5)
    trained = dict.fromkeys(curve.stage for curve in report.curves)
    assert [cost.stage for cost in report.training] == list(trained)
    assert len(trained) == 4
    for cost in report.training:
        epochs = [one for one in events if one["stage"] == cost.stage and one["event"] == "epoch"]
        curves = [curve for curve in report.curves if curve.stage == cost.stage]
        assert [one["epoch"] for one in epochs] == [curve.epoch for curve in curves]
        assert [one["val_accuracy"] for one in epochs] == pytest.approx([curve.val_accuracy for curve in curves])
        assert sum(sum(one["profile"].values()) for one in epochs) == pytest.approx(
            cost.timed_steps * cost.step_ms / 1000
        )
        assert cost.timed_steps == cost.steps == epochs[-1]["step"]
        assert {"data", "forward", "backward", "optimizer"} <= cost.parts_ms.keys()
        assert ("teacher" in cost.parts_ms) == (cost.stage not in ("teacher", "student_alone"))
        found = scalars(finished.out / "tensorboard" / epochs[0]["folder"])
        assert [value for _, value in found["loss/total"]] == pytest.approx([one["loss"] for one in epochs])
    folders = {one["folder"] for one in events if one["event"] == "epoch"}
    assert {path.name for path in (finished.out / "tensorboard").iterdir()} == folders


# memory, and the note of the screen


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which can reset a peak")
def test_peak_is_of_the_stage_alone() -> None:
    before = PeakMemory()
    large = torch.ones(100 * MIB // 4)
    with_large = before.mib()["peak_memory_mib"]
    del large
    after = PeakMemory()
    assert with_large - after.mib()["peak_memory_mib"] > 80
    small = torch.ones(30 * MIB // 4)
    assert 20 < after.mib()["peak_memory_mib"] - (with_large - 100) < 60
    del small
    assert "gpu_memory_mib" not in after.mib() or torch.cuda.is_initialized()


def test_note_tells_epoch_loss_and_throughput() -> None:
    assert note_of(tick(4, loss=0.51249, speed=12345.6)) == "epoch 2/2, loss 0.512, 12,346 images/s"
    assert note_of(tick(1, loss=None, speed=None)) == "epoch 1/2"
