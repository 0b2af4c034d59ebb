"""One run that is killed and goes on: where it was, what was left of it, and what had to be done again."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgekd import pipeline
from edgekd.artifact import open_artifact
from edgekd.engine import FitResult

__all__ = ["GROUPS", "RECIPE", "Kill", "Nursery", "ids_of", "judged", "leftovers", "lost", "whole"]

JOURNAL, HISTORY = "metrics.jsonl", "history.json"
GROUPS = ("before", "train", "distill", "quantize", "export", "between")
_NURSERY = Path(__file__).parent / "peers" / "nursery.py"

RECIPE = """
name = "kills"

[compute]
device = "cpu"
threads = 1
checkpoint_seconds = {interval}

[data]
name = "synthetic"
classes = 4
samples = {samples}
test_samples = 60
size = [8, 8]

[data.augment]
crop = 1
flip = true

[teacher]
model = "tiny"
width = 6

[teacher.train]
epochs = {epochs}
batch_size = 16
lr = 0.02

[student]
model = "tiny"
width = 4

[distill]
baseline = false

[distill.train]
epochs = {epochs}
batch_size = 16
lr = 0.02
ema_decay = 0.99

[quantize]
mode = "qat"
epochs = {qat_epochs}
calibration_samples = 64

[watch]
trackers = []
every_seconds = 0.0
"""
"""A run of some seconds: few images, many steps, so that kills fall into epochs and not only between them."""


@dataclass(frozen=True)
class Kill:
    """What one kill did.

    Args:
        after_s: seconds after the run's start.
        stage: that was being made; "before" the first, or "between" two.
        group: one of `GROUPS`.
        whole: nothing half made was taken for an artifact, after the kill and at the end.
        identical: every artifact at the end is that of the undisturbed run.
        left: what lay in the folder at the end that should not; empty if all is well.
        step: of the stage's training, the last before the kill; None without training.
        resumed_step: with which it went on; None without training.
        seconds_lost: of training, or of a stage without training, that were done again.
    """

    after_s: float
    stage: str
    group: str
    whole: bool
    identical: bool
    left: list[str]
    step: int | None
    resumed_step: int | None
    seconds_lost: float

    def row(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class Nursery:
    """The process whose forks are the runs.

    Args:
        recipe: file.
        folder: for what the runs print.
    """

    def __init__(self, recipe: Path, folder: Path) -> None:
        self._log = folder / "log"
        command = [sys.executable, str(_NURSERY), str(recipe)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def run(self, out: Path, *, kill_after: float | None = None) -> dict[str, Any]:
        """Carry out the recipe, and kill it after so many seconds.

        Raises:
            RuntimeError: it ended by itself, and not well.
        """
        if self._process.stdin is None:
            raise RuntimeError("the nursery has no input")
        order = {"out": str(out), "log": str(self._log), "kill_after": kill_after}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if not answer["killed"] and answer["code"] != 0:
            raise RuntimeError(f"A run ended with {answer['code']}: {self._log.read_text(encoding='utf-8')[-2000:]}")
        return answer

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise RuntimeError("the nursery ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def ids_of(out: Path) -> dict[str, str]:
    """Every sealed artifact's id, by its folder's name."""
    return {path.parent.name: open_artifact(path.parent).id for path in sorted(out.glob("[!.]*/manifest.json"))}


def whole(out: Path) -> bool:
    """Whether all that counts as an artifact is one, with all its parents; nothing yet is whole too."""
    if not list(out.glob("[!.]*/")):
        return True
    return all(row["ok"] for row in pipeline.verify(out))


def leftovers(out: Path) -> list[str]:
    """What a finished run should not have in its folder: halves of artifacts, training states of sealed stages."""
    hidden = [path.name for path in out.iterdir() if path.name.startswith(".") and path.is_dir()]
    states = [path.name for path in (out / ".checkpoints").glob("*")]
    return sorted([name for name in hidden if name != ".checkpoints"] + states)


def judged(
    out: Path, answer: Mapping[str, Any], wholly: bool, events: Sequence[Mapping[str, Any]], ids: Mapping[str, str]
) -> Kill:
    """What a kill did, after the run that followed it.

    Args:
        out: the run's folder.
        answer: of the nursery, on the killed run.
        wholly: whether what the killed run left was whole.
        events: the journal as the killed run left it.
        ids: of the undisturbed run.
    """
    stage, folder = _at_work(events)
    step, resumed, seconds = lost(events, _history(out / folder) if folder else None, answer["at"])
    return Kill(
        after_s=answer["seconds"],
        stage=stage,
        group=group_of(stage),
        whole=wholly and whole(out),
        identical=ids_of(out) == dict(ids),
        left=leftovers(out),
        step=step,
        resumed_step=resumed,
        seconds_lost=seconds,
    )


def group_of(stage: str) -> str:
    """The command that makes a stage."""
    if stage in ("before", "between"):
        return stage
    if stage.startswith(("int8", "mixed", "placement")):
        return "quantize"
    return "export" if stage.startswith("export") else "train" if stage.startswith("teacher") else "distill"


def journal(out: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's journal."""
    path = out / JOURNAL
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def lost(
    events: Sequence[Mapping[str, Any]], history: FitResult | None, at: float
) -> tuple[int | None, int | None, float]:
    """The last step, the step that training went on with, and the seconds that had to be done again.

    A step's line is written when it ends, so what was lost begins at the line of the step that was the last one in the
    state that was found; at the first line where there was none. A stage that does not train begins again: all since
    its start is lost. Between two stages nothing is.

    Args:
        events: the journal as the killed run left it.
        history: of the stage's training; None if it does not train.
        at: of the kill, seconds since the epoch.
    """
    if not events or _ended(events[-1]):
        return None, None, 0.0
    start = max(index for index, event in enumerate(events) if event["event"] == "stage")
    steps = [event for event in events[start:] if event["event"] == "step"]
    if history is None or not steps:
        return None, None, 0.0 if history is not None else at - _seconds(events[start])
    resumed = history.resumed_step
    kept = [event for event in steps if event["step"] == resumed] or steps[:1]
    return steps[-1]["step"], resumed, at - _seconds(kept[0])


def _at_work(events: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """The stage that was being made, and its folder."""
    if not events:
        return "before", None
    if _ended(events[-1]):
        return "between", None
    started = [event for event in events if event["event"] == "stage"][-1]
    return started["stage"], started["folder"]


def _ended(event: Mapping[str, Any]) -> bool:
    return event["event"] == "stage" and event["state"] != "started"


def _history(folder: Path) -> FitResult | None:
    path = folder / HISTORY
    return FitResult.model_validate_json(path.read_bytes()) if path.exists() else None


def _seconds(event: Mapping[str, Any]) -> float:
    return datetime.datetime.fromisoformat(event["utc"]).timestamp()
