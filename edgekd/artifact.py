"""Sealed folders: every stage's result, with what made it and what it was made from.

An artifact is written into a temporary sibling, its manifest last, synced, and renamed into place. A crash at any
moment leaves the artifact that was there before or the new one, never half of one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from edgekd._sealing import clear_leftovers, draft_folder, files_in, publish, storage_errors, sync
from edgekd.errors import ArtifactError
from edgekd.spec import Frozen, ModelSpec

__all__ = [
    "Artifact",
    "Draft",
    "Manifest",
    "ParentLink",
    "clear_leftovers",
    "content_hash",
    "file_hash",
    "open_artifact",
    "seal",
    "storage_errors",
]

SCHEMA_VERSION = 1
JOURNALS = frozenset({"history.json"})
"""Files that tell how an artifact was made, with times: checked like any other, but no part of its id."""

_MANIFEST = "manifest.json"
_BLOCK = 1 << 20


class ParentLink(Frozen):
    """One artifact that this one was made from."""

    role: str
    kind: str
    id: str


class Manifest(Frozen):
    """What an artifact says about itself.

    Args:
        kind: what it is: checkpoint, quantized, exported, bench.
        stage: the stage that made it.
        id: hash of kind, stage and content, `JOURNALS` left out.
        key: hash of what was asked; an artifact with this key need not be made again.
        parents: what it was made from.
        recipe: the part of the resolved recipe that decided it.
        files: SHA-256 of every file, by relative path.
        spec: what its model takes and gives; None if it holds no model.
        metrics: numbers, units in their names, with n.
        environment: versions and machine.
        seconds: how long it took to make.
    """

    schema_version: int = SCHEMA_VERSION
    kind: str
    stage: str
    id: str
    key: str
    parents: list[ParentLink]
    recipe: dict[str, Any]
    files: dict[str, str]
    spec: ModelSpec | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Artifact:
    """A sealed folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """Hash of the content."""
        return self.manifest.id

    def file(self, name: str) -> Path:
        """One of the artifact's files.

        Raises:
            ArtifactError: it has no such file.
        """
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path} has no file '{name}'. It has: {', '.join(sorted(self.manifest.files))}.")
        return self.path / name

    def as_parent(self, role: str) -> ParentLink:
        """The link that a child's manifest keeps."""
        return ParentLink(role=role, kind=self.manifest.kind, id=self.id)


@dataclass
class Draft:
    """An artifact being written: put files into `folder`, and fill in what the manifest says."""

    folder: Path
    spec: ModelSpec | None
    metrics: dict[str, Any]


@contextmanager
def seal(
    path: Path,
    *,
    kind: str,
    stage: str,
    key: str,
    parents: Sequence[ParentLink],
    recipe: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Iterator[Draft]:
    """Write an artifact: a context whose normal end seals and publishes the folder.

    If the block raises, nothing at `path` changes and the temporary folder is removed.

    Raises:
        StorageError: the disk is full or read-only.
    """
    started = time.monotonic()
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = draft_folder(path)
    draft = Draft(folder, None, {})
    try:
        with storage_errors(path):
            yield draft
            files = {name: file_hash(folder / name) for name in files_in(folder)}
            manifest = Manifest(
                kind=kind,
                stage=stage,
                id=_id(kind, stage, files),
                key=key,
                parents=list(parents),
                recipe=dict(recipe),
                files=files,
                spec=draft.spec,
                metrics=draft.metrics,
                environment=dict(environment),
                seconds=round(time.monotonic() - started, 3),
            )
            (folder / _MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
            sync(folder, like=_MANIFEST)
            publish(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def open_artifact(path: Path, *, kind: str | None = None, verify: bool = True) -> Artifact:
    """Open a sealed folder.

    Args:
        path: the folder.
        kind: the kind that is needed, None for any.
        verify: compare every file with its recorded hash.

    Raises:
        ArtifactError: missing, damaged (names the file), or of another kind.
    """
    manifest_file = path / _MANIFEST
    try:
        manifest = Manifest.model_validate_json(manifest_file.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(
            f"There is no artifact at {path}: {_MANIFEST} is missing. Run the stage that makes it."
        ) from error
    except OSError as error:
        raise ArtifactError(f"{manifest_file} cannot be read: {error.strerror}.") from error
    except (ValidationError, ValueError) as error:
        raise ArtifactError(f"{manifest_file} is damaged. Remove the folder and run the stage again.") from error
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path} holds a '{manifest.kind}' artifact, but a '{kind}' is needed here.")
    if verify:
        _verify(path, manifest)
    return Artifact(path, manifest)


def content_hash(values: Any) -> str:
    """SHA-256 of plain JSON values, whatever the order of their keys.

    >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    True
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _id(kind: str, stage: str, files: Mapping[str, str]) -> str:
    """Hash of what the artifact is, not of how long it took: made again the same way, it is the same one.

    The stage is part of it: a lineage must tell a result from a later one that happens to be equal.
    """
    content = {name: code for name, code in files.items() if name not in JOURNALS}
    return content_hash({"kind": kind, "stage": stage, "files": content})


def _verify(path: Path, manifest: Manifest) -> None:
    if manifest.id != _id(manifest.kind, manifest.stage, manifest.files):
        raise ArtifactError(
            f"{path / _MANIFEST} is damaged: its id is not that of its files. Remove {path} and run its stage again."
        )
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing. Remove {path} and run its stage again.")
        if file_hash(file) != expected:
            raise ArtifactError(
                f"{file} is damaged: its content is not what was sealed. Remove {path} and run its stage again."
            )
