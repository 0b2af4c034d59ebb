"""A bundle on the disk: opened with distrust, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgekd._archive import files_of, read_index, unpack, write_archive
from edgekd._bundle_manifest import (
    MANIFEST,
    MOST_MANIFEST_BYTES,
    SIGNATURE,
    BundleManifest,
    FileRecord,
    ModelEntry,
    manifest_bytes,
    read_manifest,
    with_id,
)
from edgekd._sealing import draft_folder, publish, storage_errors, sync
from edgekd.artifact import file_hash
from edgekd.errors import ArtifactError, OverwriteRefused

__all__ = ["Bundle", "SignFolder", "is_bundle", "open_bundle", "write_bundle"]

SignFolder = Callable[[Path], None]
"""Writes a signature into a finished folder."""

_ARCHIVE = ".zip"


@dataclass(frozen=True)
class Bundle:
    """An open bundle whose files are what the manifest says.

    Args:
        path: as it was given: a folder or an archive.
        folder: where its files lie now; of an archive, a private folder that is gone when the bundle is closed.
        manifest: what it says about itself.
        signed: whether it carries a signature; only `edgekd._bundle_signature.check` says whether that one holds.
    """

    path: Path
    folder: Path
    manifest: BundleManifest
    signed: bool

    def file(self, name: str) -> Path:
        """One of its files.

        Raises:
            ArtifactError: the manifest does not name it.
        """
        if name != MANIFEST and name not in self.manifest.files:
            raise ArtifactError(f"{self.path} has no file '{name}'. It has: {', '.join(sorted(self.manifest.files))}.")
        return self.folder / name

    def files_for(self, entry: ModelEntry) -> dict[str, Path]:
        """A model's file and those beside it, by their names in the bundle."""
        return {name: self.file(name) for name in entry.files}


def is_bundle(path: Path) -> bool:
    """Whether a path looks like a bundle and not like a run: an archive, or a folder with `run_model.py`."""
    return path.suffix.lower() == _ARCHIVE or (path / MANIFEST).is_file()


@contextmanager
def open_bundle(path: Path, *, models: bool = True) -> Iterator[Bundle]:
    """Open a bundle and check all of it.

    Args:
        path: its folder, or its .zip.
        models: read every ONNX file too, to see that it is one and that it asks for no file outside its folder.

    Raises:
        ArtifactError: it is missing or damaged (names the file), has a file too many or too few, a link, an unsafe
            name, or is an archive that another program made.
        ModelFileError: one of its ONNX files is corrupt or unsafe.
    """
    if path.is_dir():
        yield _checked(path, path, None, models=models)
        return
    if not path.is_file():
        raise ArtifactError(f"There is no bundle at {path}. Make one with `edgekd pack RUN --out {path}`.")
    with _private_folder() as folder:
        hashes = _unpacked(path, folder)
        yield _checked(path, folder, hashes, models=models)


def write_bundle(
    manifest: BundleManifest,
    files: Mapping[str, Path],
    out: Path,
    *,
    overwrite: bool = False,
    sign: SignFolder | None = None,
) -> BundleManifest:
    """Write a bundle, whole or not at all.

    Args:
        manifest: `files` and `id` are filled in here.
        files: what goes in, by its name in the bundle.
        out: a folder, or a file that ends with .zip.
        overwrite: replace a bundle that is there.
        sign: writes a signature into the finished folder; None for none.

    Returns:
        The manifest as it was written.

    Raises:
        OverwriteRefused: something is at `out` that is no bundle, or a bundle without `overwrite`.
        StorageError: the disk refused.
    """
    _check_place(out, overwrite)
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = draft_folder(out)
        try:
            written = _fill(draft, manifest, files)
            if sign is not None:
                sign(draft)
            sync(draft, like=MANIFEST)
            if out.suffix.lower() == _ARCHIVE:
                _publish_archive(draft, out)
            else:
                publish(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return written


def _fill(draft: Path, manifest: BundleManifest, files: Mapping[str, Path]) -> BundleManifest:
    records = {}
    for name, source in sorted(files.items()):
        target = draft / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        records[name] = FileRecord(sha256=file_hash(target), bytes=target.stat().st_size)
    whole = with_id(manifest.model_copy(update={"files": records}))
    data = manifest_bytes(whole.model_dump(mode="json"))
    read_manifest(data)  # what cannot be read back is not written
    (draft / MANIFEST).write_bytes(data)
    return whole


def _check_place(out: Path, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    ours = (out / MANIFEST).is_file() if out.is_dir() else out.suffix.lower() == _ARCHIVE
    if not ours or not overwrite:
        raise OverwriteRefused(
            f"{out} is there already{'' if ours else ', and it is no bundle'}. Choose another --out"
            f"{', or pass --overwrite' if ours else ''}."
        )


def _publish_archive(draft: Path, out: Path) -> None:
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as stream:
            write_archive(stream, draft, list(files_of(draft)))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, out)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def _private_folder() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="edgekd-bundle-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpacked(path: Path, folder: Path) -> dict[str, str]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    with stream, storage_errors(folder):
        index = read_index(stream, str(path))
        return unpack(stream, index, folder)


def _checked(path: Path, folder: Path, hashes: Mapping[str, str] | None, *, models: bool) -> Bundle:
    sizes = files_of(folder)
    if MANIFEST not in sizes:
        raise ArtifactError(f"{path} is no bundle: {MANIFEST} is missing. Make one with `edgekd pack RUN`.")
    manifest = read_manifest(_manifest_data(folder / MANIFEST))
    there = sizes.keys() - {MANIFEST, SIGNATURE}
    if missing := sorted(manifest.files.keys() - there):
        raise ArtifactError(f"{path}: {', '.join(missing)} is missing. Copy the bundle again.")
    if extra := sorted(there - manifest.files.keys()):
        raise ArtifactError(
            f"{path}: {', '.join(extra)} is no file of the bundle. Remove it, or copy the bundle again."
        )
    for name, record in manifest.files.items():
        if sizes[name] != record.bytes:
            raise ArtifactError(
                f"{name} is damaged: it has {sizes[name]} bytes, {record.bytes} were packed. Copy the bundle again."
            )
        if (hashes[name] if hashes else _hash(folder / name, name)) != record.sha256:
            raise ArtifactError(f"{name} is damaged: its content is not what was packed. Copy the bundle again.")
    if models:
        for entry in manifest.models:
            _check_model(folder, entry)
    return Bundle(path, folder, manifest, SIGNATURE in sizes)


def _manifest_data(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MOST_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error


def _hash(path: Path, name: str) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise ArtifactError(f"{name} cannot be read: {error.strerror}.") from error


def _check_model(folder: Path, entry: ModelEntry) -> None:
    """The file is an ONNX file whose tensors lie where the manifest says; other formats are only hashed."""
    if not entry.file.endswith(".onnx"):
        return
    from edgekd.targets._external import is_external, location_of, stored_tensors
    from edgekd.targets._modelfile import read_model

    model = read_model(folder / entry.file, external_data=False)
    tensors = stored_tensors(model.graph, model.functions)
    base = Path(entry.file).parent
    named = {(base / location_of(tensor)).as_posix() for tensor in tensors if is_external(tensor)}
    if named != set(entry.external_files):
        raise ArtifactError(
            f"{MANIFEST}: {entry.file} needs the files {sorted(named) or 'none'} beside it, the manifest says"
            f" {entry.external_files or 'none'}. Pack the bundle again."
        )
