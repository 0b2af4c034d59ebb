"""One run: its folder, its stages that are skipped when they are there, and what every stage can ask for."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import edgekd
from edgekd import _group
from edgekd._checkpoint import forget
from edgekd.artifact import Artifact, Draft, content_hash, file_hash, open_artifact, seal
from edgekd.catalog import CATALOGS, user_code_beside
from edgekd.datasets._base import DataBundle, Wanted
from edgekd.errors import ArtifactError, BackendMissing, MismatchError, UsageError
from edgekd.export import model_spec
from edgekd.models._base import ModelFactory
from edgekd.pipeline._claim import CHECKPOINTS, await_artifact
from edgekd.pipeline._watcher import Watcher
from edgekd.pipeline._watching import PeakMemory, Watching
from edgekd.recipe import ModelSettings, Recipe
from edgekd.spec import ModelSpec
from edgekd.weights import load_weights

__all__ = ["WEIGHTS", "NotThere", "Run", "StageTime", "environment"]

WEIGHTS = "model.safetensors"
_PACKAGES = ("torch", "torchao", "onnx", "onnxscript", "onnxruntime", "accelerate", "numpy")


class NotThere(Exception):
    """A stage's artifact is not there, and nothing is to be made."""


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
        open_only: make nothing; a stage that is not there raises `NotThere`.
        watching: writes down what happens; None where nothing is made.
    """

    recipe: Recipe
    out: Path
    recipe_file: Path | None
    watcher: Watcher
    open_only: bool = False
    watching: Watching | None = None
    times: list[StageTime] = field(default_factory=list)
    made: dict[str, Artifact] = field(default_factory=dict)

    @property
    def base_folder(self) -> Path:
        """Relative paths of the recipe start here."""
        return self.recipe_file.parent if self.recipe_file else Path()

    @cached_property
    def device(self) -> torch.device:
        """Where training and evaluation compute; each of several processes on a host has a GPU of its own."""
        asked = self.recipe.compute.device
        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        if asked == "cuda" and not torch.cuda.is_available():
            raise BackendMissing("compute.device is 'cuda', but torch finds no CUDA device here. Set it to 'cpu'.")
        several = asked == "cuda" and _group.count() > 1
        return torch.device(asked, _group.local_index()) if several else torch.device(asked)

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

    @cached_property
    def user_code(self) -> dict[str, str]:
        """Hash of the file of every network and loss that is the user's own: another content, another result."""
        recipe = self.recipe
        losses = [loss.name for loss in (*recipe.distill.losses, *(recipe.quantize.losses or ()))]
        found = {}
        networks = (recipe.teacher, *recipe.teachers, *recipe.assistants, recipe.student)
        for catalog, name in [("models", one.model) for one in networks] + [("losses", name) for name in losses]:
            module = name.partition(":")[0]
            if ":" in name and module not in CATALOGS[catalog].names():
                self._load(catalog, name)
                file = sys.modules[module].__file__
                found[name] = file_hash(Path(file)) if file else ""
        return found

    def build(self, settings: ModelSettings, seed: int) -> nn.Module:
        """A network that was not trained, the same for the same seed.

        One that is made out of the teacher is made out of the trained one as soon as that is there.
        """
        factory = self.factory(settings)
        shape = self.data.preprocessing.input_shape
        if factory.needs_teacher_network:
            return factory.derive(self._teacher(), torch.zeros(1, *shape))
        torch.manual_seed(seed)
        return factory.build(len(self.data.classes), shape)

    def factory(self, settings: ModelSettings) -> ModelFactory:
        """What builds a network, with its options; nothing is built yet."""
        member, argument = self._load("models", settings.model)
        if member.takes_file and argument:
            argument = str(self.base_folder / argument)
        factory: ModelFactory = member(member.Options(**settings.options), argument)
        return factory

    def _teacher(self) -> nn.Module:
        settings = self.recipe.teacher
        member, _ = self._load("models", settings.model)
        if member.ready_made or member.needs_teacher_network:
            raise UsageError(
                f"Nothing can be made out of the teacher '{settings.model}': it is not a network with weights. Give"
                " [teacher] a model that this project builds, or the student a model of its own."
            )
        network = self.build(settings, self.recipe.seed)
        if (made := self.made.get("teacher")) is not None:
            load_weights(network, made.file(WEIGHTS))
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
        everywhere: bool = False,
    ) -> Artifact:
        """The artifact of a stage: opened if it is there, made if not.

        Args:
            name: of the stage; also the start of its folder's name.
            kind: of the artifact.
            settings: all that decides the result, as plain values; with the parents it makes the key.
            parents: by role.
            make: fills the draft; its second argument is a checkpoint file that survives a crash.
            everywhere: every process takes part in the work, and the main one's draft is sealed. Otherwise the main one
                works alone, and the others wait for it.

        Raises:
            MismatchError: the processes do not work on the same.
        """
        key, found = self._found(name, kind, self.key(name, settings, parents), everywhere=everywhere)
        path = self.out / f"{name}-{key[:8]}"
        if found is not None:
            if not self.open_only:
                self.watcher.stage(name, cached=True)
                if self.watching is not None:
                    self.watching.already_there(name, path.name)
            self.times.append(StageTime(name, found.manifest.seconds, cached=True))
            self.made[name] = found
            return found
        if self.open_only:
            raise NotThere(name)
        self.watcher.stage(name, cached=False)
        started = time.monotonic()
        checkpoint = self.out / CHECKPOINTS / f"{name}-{key[:8]}.pt"

        def sealed() -> Artifact:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            links = [artifact.as_parent(role) for role, artifact in parents.items()]
            followed = nullcontext(PeakMemory()) if self.watching is None else self.watching.stage(name, path.name)
            with (
                followed as memory,
                seal(
                    path,
                    kind=kind,
                    stage=name,
                    key=key,
                    parents=links,
                    recipe=settings,
                    environment=self.environment,
                ) as draft,
            ):
                make(draft, checkpoint)
                draft.metrics |= memory.mib()
            forget(checkpoint)
            return open_artifact(path, kind=kind, verify=False)

        self.made[name] = _made_together(sealed, lambda draft: make(draft, checkpoint), everywhere=everywhere)
        await_artifact(path)
        self.times.append(StageTime(name, time.monotonic() - started, cached=False))
        return self.made[name]

    def _found(self, name: str, kind: str, key: str, *, everywhere: bool) -> tuple[str, Artifact | None]:
        """The key and the artifact if it is there: what the main process asks for and sees counts for all."""
        path = self.out / f"{name}-{key[:8]}"
        asked, found = _group.from_main(lambda: (key, self._open(path, kind, key)))
        if everywhere and asked != key:
            raise MismatchError(
                f"Process {_group.index()} would make another {name} than the main process: the recipe, the data or"
                " edgekd differ from host to host. Give every host the same."
            )
        if found is not None:
            await_artifact(found.path)
        return asked, found

    def key(self, name: str, settings: Mapping[str, Any], parents: Mapping[str, Artifact]) -> str:
        """Hash of all that decides a stage's result."""
        decides = {
            "stage": name,
            "settings": settings,
            "parents": {role: artifact.id for role, artifact in parents.items()},
            "data": self.data.fingerprint,
            "preprocessing": self.data.preprocessing.model_dump(),
            "version": edgekd.__version__,
        }
        if self.user_code:
            decides["user_code"] = self.user_code
        return content_hash(decides)

    def is_there(self, name: str, kind: str, settings: Mapping[str, Any], parents: Mapping[str, Artifact]) -> bool:
        """Whether a stage would be skipped."""
        return self._found(name, kind, self.key(name, settings, parents), everywhere=False)[1] is not None

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
        if allow and ":" in name:
            user_code_beside(self.base_folder)
        entry = CATALOGS[catalog].load(name, allow_user_code=allow)
        if not allow and getattr(entry.member, "runs_user_code", False):
            raise UsageError(
                f"model '{name}' can run code of your own. If you trust it, put allow_user_code = true at the top of"
                " the recipe."
            )
        return entry.member, entry.argument


def _made_together(sealed: Callable[[], Artifact], make: Callable[[Draft], None], *, everywhere: bool) -> Artifact:
    """What the main process seals; the others help to make it, or wait.

    Args:
        sealed: makes, seals and opens it.
        make: only makes it.
        everywhere: the others make it too, and throw their drafts away.
    """
    if not everywhere:
        return _group.from_main(sealed)
    made = []
    if _group.is_main():
        made.append(sealed())
    else:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            make(Draft(Path(folder), None, {}))
    return _group.from_main(lambda: made[0])


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
