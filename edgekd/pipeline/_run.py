"""One run: its folder, its stages that are skipped when they are there, and what every stage can ask for."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

import edgekd
from edgekd.artifact import Artifact, Draft, content_hash, open_artifact, seal, storage_errors
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import DataBundle, Wanted
from edgekd.errors import ArtifactError, OverwriteRefused, UsageError
from edgekd.export import model_spec
from edgekd.recipe import ModelSettings, Recipe
from edgekd.spec import ModelSpec

__all__ = ["Run", "Silent", "StageTime", "Watcher", "environment"]

_MARKER = "run.json"
_PACKAGES = ("torch", "torchao", "onnx", "onnxscript", "onnxruntime", "accelerate", "numpy")


class Watcher(Protocol):
    """Somebody who follows a run."""

    def stage(self, name: str, *, cached: bool) -> None:
        """A stage starts, or is skipped because its result is there."""
        ...

    def progress(self, done: int, total: int, note: str = "") -> None:
        """The current stage went on."""
        ...

    def message(self, text: str) -> None:
        """Something the user should know; one line."""
        ...


class Silent:
    """A watcher that shows nothing."""

    def stage(self, name: str, *, cached: bool) -> None:
        """Ignored."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""


@dataclass(frozen=True)
class StageTime:
    """What one stage of this run cost; a cached one was there already."""

    stage: str
    seconds: float
    cached: bool


@dataclass
class Run:
    """A recipe being carried out in a folder.

    Args:
        recipe: checked.
        out: the run's folder; every stage's artifact is a folder in it, named after the stage and its key.
        recipe_file: where the recipe came from; relative paths in it start at its folder.
        watcher: told about progress.
    """

    recipe: Recipe
    out: Path
    recipe_file: Path | None
    watcher: Watcher
    times: list[StageTime] = field(default_factory=list)
    made: dict[str, Artifact] = field(default_factory=dict)

    @property
    def base_folder(self) -> Path:
        """Relative paths of the recipe start here."""
        return self.recipe_file.parent if self.recipe_file else Path()

    @cached_property
    def device(self) -> torch.device:
        """Where training and evaluation compute."""
        asked = self.recipe.compute.device
        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(asked)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions and machine, for every manifest."""
        return environment()

    @cached_property
    def data(self) -> DataBundle:
        """The recipe's data, read once."""
        settings = self.recipe.data
        wanted = Wanted(
            seed=self.recipe.seed,
            val_fraction=settings.val_fraction,
            limit_train=settings.limit_train,
            size=None if settings.size is None else (settings.size[0], settings.size[1]),
            mean=None if settings.mean is None else tuple(settings.mean),
            std=None if settings.std is None else tuple(settings.std),
            base_folder=self.base_folder,
        )
        entry = self._load("datasets", settings.name)
        bundle: DataBundle = entry[0](entry[0].Options(**settings.options), entry[1]).load(wanted)
        return bundle

    @cached_property
    def spec(self) -> ModelSpec:
        """What every model of this run takes and gives."""
        return model_spec(self.data.preprocessing, self.data.classes)

    def build(self, settings: ModelSettings, seed: int) -> nn.Module:
        """A freshly initialised network, the same for the same seed."""
        member, argument = self._load("models", settings.model)
        torch.manual_seed(seed)
        factory = member(member.Options(**settings.options), argument)
        network: nn.Module = factory.build(len(self.data.classes), self.data.preprocessing.input_shape)
        return network

    def member(self, catalog: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """An instance of a catalog member with these options."""
        found, _ = self._load(catalog, name)
        return found(found.Options(**(options or {})))

    def target(self, name: str) -> Any:
        """The target called `name`."""
        return self._load("targets", name)[0]()

    def stage(
        self,
        name: str,
        *,
        kind: str,
        settings: Mapping[str, Any],
        parents: Mapping[str, Artifact],
        make: Callable[[Draft, Path], None],
    ) -> Artifact:
        """The artifact of a stage: opened if it is there, made if not.

        Args:
            name: of the stage; also the start of its folder's name.
            kind: of the artifact.
            settings: all that decides the result, as plain values; with the parents it makes the key.
            parents: by role.
            make: fills the draft; its second argument is a checkpoint file that survives a crash.
        """
        key = self.key(name, settings, parents)
        path = self.out / f"{name}-{key[:8]}"
        if (found := self._open(path, kind, key)) is not None:
            self.watcher.stage(name, cached=True)
            self.times.append(StageTime(name, found.manifest.seconds, cached=True))
            self.made[name] = found
            return found
        self.watcher.stage(name, cached=False)
        started = time.monotonic()
        checkpoint = self.out / ".checkpoints" / f"{name}-{key[:8]}.pt"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        links = [artifact.as_parent(role) for role, artifact in parents.items()]
        with seal(
            path,
            kind=kind,
            stage=name,
            key=key,
            parents=links,
            recipe=settings,
            environment=self.environment,
        ) as draft:
            make(draft, checkpoint)
        checkpoint.unlink(missing_ok=True)
        self.times.append(StageTime(name, time.monotonic() - started, cached=False))
        self.made[name] = open_artifact(path, kind=kind, verify=False)
        return self.made[name]

    def key(self, name: str, settings: Mapping[str, Any], parents: Mapping[str, Artifact]) -> str:
        """Hash of all that decides a stage's result."""
        return content_hash(
            {
                "stage": name,
                "settings": settings,
                "parents": {role: artifact.id for role, artifact in parents.items()},
                "data": self.data.fingerprint,
                "preprocessing": self.data.preprocessing.model_dump(),
                "version": edgekd.__version__,
            }
        )

    def is_there(self, name: str, kind: str, settings: Mapping[str, Any], parents: Mapping[str, Artifact]) -> bool:
        """Whether a stage would be skipped."""
        key = self.key(name, settings, parents)
        return self._open(self.out / f"{name}-{key[:8]}", kind, key) is not None

    def _open(self, path: Path, kind: str, key: str) -> Artifact | None:
        if not path.exists():
            return None
        try:
            artifact = open_artifact(path, kind=kind)
        except ArtifactError as error:
            self.watcher.message(f"{error} It is made again now.")
            return None
        return artifact if artifact.manifest.key == key else None

    def _load(self, catalog: str, name: str) -> tuple[Any, str]:
        allow = self.recipe.allow_user_code
        folder = str(self.base_folder.resolve())
        if allow and ":" in name and folder not in sys.path:
            sys.path.insert(0, folder)  # a user's module lies beside the recipe
        entry = CATALOGS[catalog].load(name, allow_user_code=allow)
        return entry.member, entry.argument


@contextmanager
def claimed(out: Path, recipe: Recipe, recipe_file: Path | None, *, overwrite: bool) -> Iterator[None]:
    """Hold a run's folder for this process and mark it as this recipe's.

    Raises:
        OverwriteRefused: it holds something else, or another recipe's run.
        UsageError: another process is at work in it.
    """
    marker = out / _MARKER
    own = {"name": recipe.name, "recipe_file": str(recipe_file.resolve()) if recipe_file else None}
    if out.exists() and not out.is_dir():
        raise OverwriteRefused(f"{out} is a file. Choose another folder with --out.")
    if marker.exists() and not overwrite:
        _check_owner(out, marker, own)
    elif out.exists() and any(out.iterdir()) and not marker.exists() and not overwrite:
        raise OverwriteRefused(
            f"{out} is not empty and is no run of edgekd. Choose another folder with --out, or pass --overwrite to"
            " write beside what is there."
        )
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            write_whole_text(marker, json.dumps(own, indent=1))
            yield


def write_whole_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with storage_errors(path):
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)


def environment() -> dict[str, Any]:
    """Versions of what computes, and the processor."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    member = CATALOGS["devices"].load("cpu").member
    return {
        "edgekd": edgekd.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "device": member(member.Options()).fingerprint(),
    }


def _check_owner(out: Path, marker: Path, own: Mapping[str, Any]) -> None:
    try:
        other = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        other = {}
    if other.get("name") != own["name"] or (
        other.get("recipe_file") not in (None, own["recipe_file"]) and Path(str(other.get("recipe_file"))).exists()
    ):
        raise OverwriteRefused(
            f"{out} holds the run of another recipe: '{other.get('name')}' from {other.get('recipe_file')}; this one is"
            f" '{own['name']}' from {own['recipe_file']}. Choose another folder with --out, or pass --overwrite."
        )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second process out of the folder; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: without the lock, two runs at once are the user's own risk
        yield
        return
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"Another edgekd process is at work in {out}. Wait for it, or choose another --out.") from error
        yield
