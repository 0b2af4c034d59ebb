"""One small run that many tests read, and the recipe it came from."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekd import pipeline
from edgekd.artifact import Artifact, open_artifact
from edgekd.recipe import Recipe, parse_recipe

TARGET = "onnxruntime_x86"
SMALL: dict[str, Any] = {
    "name": "small",
    "compute": {"device": "cpu", "threads": 1},
    "data": {"name": "synthetic", "classes": 4, "samples": 240, "test_samples": 80, "size": [8, 8]},
    "teacher": {"model": "tiny", "width": 6, "train": {"epochs": 3, "batch_size": 32, "lr": 0.02}},
    "student": {"model": "tiny", "width": 4},
    "distill": {"train": {"epochs": 3, "batch_size": 32, "lr": 0.02}},
    "quantize": {"calibration_samples": 64},
    "export": {"targets": [TARGET]},
    "bench": {"queries": 64, "max_seconds": 5.0},
}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A table with these values put in, tables within tables."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


class Listener(pipeline.Silent):
    """Keeps what a run told, and may stop it.

    Args:
        stop: asked at every step of progress with the stage, the step and the total; raises what it gives.
    """

    def __init__(self, stop: Callable[[str, int, int], BaseException | None] = lambda *_: None) -> None:
        self.stages: list[tuple[str, bool]] = []
        self.messages: list[str] = []
        self._stop = stop

    def stage(self, name: str, *, cached: bool) -> None:
        self.stages.append((name, cached))

    def progress(self, done: int, total: int, note: str = "") -> None:
        if (error := self._stop(self.stages[-1][0], done, total)) is not None:
            raise error

    def message(self, text: str) -> None:
        self.messages.append(text)

    @property
    def made(self) -> list[str]:
        """Stages that were not there."""
        return [name for name, cached in self.stages if not cached]


def artifact_of(out: Path, stage: str) -> Artifact:
    """The one artifact of a stage in a run's folder."""
    [folder] = [path for path in out.glob(f"{stage}-*") if path.name.rpartition("-")[0] == stage]
    return open_artifact(folder)


def hidden(out: Path) -> list[str]:
    """What lies in a run's folder beside its results."""
    return sorted(path.name for path in out.iterdir() if path.name.startswith("."))


@pytest.fixture(scope="session")
def small_recipe() -> Callable[..., Recipe]:
    """A recipe that takes seconds, with changes merged in."""

    def make(changes: Mapping[str, Any] | None = None, *, folder: Path | None = None) -> Recipe:
        return parse_recipe(merged(SMALL, changes or {}), folder=folder)

    return make


@pytest.fixture(scope="session")
def finished(small_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> pipeline.RunResult:
    """The small recipe carried out once; its folder is only read."""
    return pipeline.run(small_recipe(), out=tmp_path_factory.mktemp("finished") / "small")


@pytest.fixture
def copied(finished: pipeline.RunResult, tmp_path: Path) -> Path:
    """A copy of the finished run's folder, to change."""
    return shutil.copytree(finished.out, tmp_path / "small")
