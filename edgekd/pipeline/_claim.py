"""A run's folder: whose it is, that only one command works in it, and what a killed one left there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from edgekd import _group
from edgekd.artifact import clear_leftovers, storage_errors
from edgekd.errors import ArtifactError, OverwriteRefused, UsageError
from edgekd.recipe import Recipe

__all__ = ["CHECKPOINTS", "await_artifact", "claimed", "write_whole_text"]

CHECKPOINTS = ".checkpoints"
_MARKER, _LOCK, _MANIFEST = "run.json", ".lock", "manifest.json"
_SEEN_SECONDS = 60.0  # how long a shared folder may take to show what another host wrote


@contextmanager
def claimed(out: Path, recipe: Recipe, recipe_file: Path | None, *, overwrite: bool) -> Iterator[None]:
    """Hold a run's folder for this command and mark it as this recipe's.

    Processes that a launcher started meet here: the main one holds the folder, and the others wait until it does.

    Raises:
        OverwriteRefused: it holds something else, or another recipe's run.
        UsageError: another command is at work in it.
        BackendMissing: another process cannot be reached, or went away in the middle.
    """
    _group.join(cpu=recipe.compute.device == "cpu" or not torch.cuda.is_available())
    with _group.losing_contact(), ExitStack() as held:
        _group.from_main(lambda: held.enter_context(_held(out, recipe, recipe_file, overwrite=overwrite)))
        yield


@contextmanager
def _held(out: Path, recipe: Recipe, recipe_file: Path | None, *, overwrite: bool) -> Iterator[None]:
    marker = out / _MARKER
    own = {"name": recipe.name, "recipe_file": str(recipe_file.resolve()) if recipe_file else None}
    if out.exists() and not out.is_dir():
        raise OverwriteRefused(f"{out} is a file. Choose another folder with --out.")
    foreign = out.exists() and not marker.exists() and any(one.name != _LOCK for one in out.iterdir())
    if foreign and not overwrite:
        raise OverwriteRefused(
            f"{out} is not empty and is no run of edgekd. Choose another folder with --out, or pass --overwrite to"
            " write beside what is there."
        )
    with storage_errors(marker):
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            if marker.exists() and not overwrite:
                _check_owner(out, marker, own)
            _clear_leftovers(out)
            write_whole_text(marker, json.dumps(own, indent=1))
            yield


def await_artifact(path: Path) -> None:
    """Wait until this host sees an artifact that the main process published, on a folder that hosts share.

    Raises:
        ArtifactError: it does not.
    """
    deadline = time.monotonic() + _SEEN_SECONDS
    while not (path / _MANIFEST).exists():
        if time.monotonic() > deadline:
            raise ArtifactError(
                f"{path} was written by the main process, but process {_group.index()} does not see it. Put the run's"
                " folder on storage that every host shares."
            )
        time.sleep(0.05)


def write_whole_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all; of several processes, only the main one does."""
    if not _group.is_main():
        return
    with storage_errors(path):
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)


def _check_owner(out: Path, marker: Path, own: Mapping[str, Any]) -> None:
    try:
        other = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        other = None
    if not isinstance(other, dict):
        raise OverwriteRefused(
            f"{marker} is damaged, so it does not tell whose run {out} holds. Choose another folder with --out, or pass"
            " --overwrite to go on in it."
        )
    if other.get("name") != own["name"] or (
        other.get("recipe_file") not in (None, own["recipe_file"]) and Path(str(other.get("recipe_file"))).exists()
    ):
        raise OverwriteRefused(
            f"{out} holds the run of another recipe: '{other.get('name')}' from {other.get('recipe_file')}; this one is"
            f" '{own['name']}' from {own['recipe_file']}. Choose another folder with --out, or pass --overwrite."
        )


def _clear_leftovers(out: Path) -> None:
    """Remove what a killed process left half written; the lock says that nobody is writing it now."""
    clear_leftovers(out)
    for file in (*out.glob(".*.part"), *(out / CHECKPOINTS).glob(".*")):
        file.unlink(missing_ok=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second process out of the folder; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: without the lock, two runs at once are the user's own risk
        yield
        return
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"Another edgekd process is at work in {out}. Wait for it, or choose another --out."
            ) from error
        yield
