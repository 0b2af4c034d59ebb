"""Find the image files under class folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from edgekd.datasets._image_files import ImageFacts, in_threads, looked_at
from edgekd.datasets._splits import Indices
from edgekd.errors import DataError

__all__ = ["ImageTree", "class_folders", "common_size", "image_tree", "readable"]

_log = logging.getLogger(__name__)

_SUFFIXES = (".jpg", ".jpeg", ".png")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
_SHOWN = 5


@dataclass(frozen=True)
class ImageTree:
    """Image files and their classes.

    Args:
        root: the folder of class folders.
        files: the files, sorted by class, then by path.
        labels: class index of each file, shape (N,).
        facts: what a look at each file gave; empty before the look.
    """

    root: Path
    files: tuple[Path, ...]
    labels: Indices
    facts: tuple[ImageFacts, ...] = ()

    def take(self, indices: Indices) -> ImageTree:
        """The files at `indices`."""
        chosen = indices.tolist()
        return replace(
            self,
            files=tuple(self.files[i] for i in chosen),
            labels=self.labels[indices],
            facts=tuple(self.facts[i] for i in chosen),
        )

    def content(self) -> bytes:
        """Bytes that identify names, labels and files."""
        rows = zip(self.files, self.labels.tolist(), self.facts, strict=True)
        return b"".join(
            f"{file.relative_to(self.root).as_posix()}\0{label}\0".encode("utf-8", "surrogateescape") + fact.digest
            for file, label, fact in rows
        )


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted.

    Raises:
        DataError: no such folder, fewer than two classes, or the folders are splits and not classes.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Set data.path to a folder with one subfolder of images per class.")
    names = tuple(sorted(one.name for one in root.iterdir() if one.is_dir() and not one.name.startswith(".")))
    if names and _SPLIT_NAMES.issuperset(name.lower() for name in names):
        raise DataError(
            f"{root}: its folders {', '.join(names)} look like splits, not classes. Set data.path to the training"
            f" folder ({root / names[-1]}) and data.val, data.test to the others."
        )
    if len(names) < 2:
        raise DataError(f"{root}: needs one subfolder per class, at least two, found {len(names)}: {', '.join(names)}.")
    return names


def image_tree(root: Path, classes: Sequence[str]) -> ImageTree:
    """All JPEG and PNG files under the class folders of `root`, by their suffix.

    Raises:
        DataError: no such folder, no images in it, or a class that `classes` does not have.
    """
    unknown = sorted(set(class_folders(root)) - set(classes))
    if unknown:
        raise DataError(
            f"{root}: class folder '{unknown[0]}' is not among the training classes ({', '.join(classes[:_SHOWN])}"
            f"{', ...' if len(classes) > _SHOWN else ''})."
        )
    files: list[Path] = []
    labels: list[int] = []
    others: list[Path] = []
    for label, name in enumerate(classes):
        for path in _files_under(root / name):
            if path.suffix.lower() in _SUFFIXES:
                files.append(path)
                labels.append(label)
            else:
                others.append(path)
    if others:
        _log.warning("%s: %d files are not JPEG or PNG and are not used, the first: %s", root, len(others), others[0])
    if not files:
        raise DataError(f"{root}: no {', '.join(_SUFFIXES)} files in its class folders.")
    return ImageTree(root, tuple(files), np.array(labels, dtype=np.int64))


def readable(tree: ImageTree, *, skip_broken: bool) -> tuple[ImageTree, tuple[str, ...]]:
    """Look at every file; leave out broken ones if asked.

    Args:
        tree: files not looked at yet.
        skip_broken: decode every file fully, and leave out the ones that fail instead of stopping.

    Returns:
        The readable files with their facts, and one line per file that was left out.

    Raises:
        DataError: names the broken files, if they are not to be skipped.
    """
    found = list(in_threads(partial(_looked_at, thoroughly=skip_broken), tree.files))
    broken = tuple(str(one) for one in found if isinstance(one, DataError))
    if broken and not skip_broken:
        shown = "".join(f"\n  {line}" for line in broken[:_SHOWN])
        more = f"\n  and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise DataError(
            f"{tree.root}: {len(broken)} of {len(found)} images cannot be read. Repair or delete them, or set"
            f" data.skip_broken = true to leave them out.{shown}{more}"
        )
    for line in broken:
        _log.warning("left out: %s", line)
    kept = [i for i, one in enumerate(found) if isinstance(one, ImageFacts)]
    facts = tuple(one for one in found if isinstance(one, ImageFacts))
    files = tuple(tree.files[i] for i in kept)
    return replace(tree, files=files, labels=tree.labels[np.array(kept, dtype=np.int64)], facts=facts), broken


def common_size(trees: Sequence[ImageTree]) -> tuple[int, int]:
    """(H, W) of every image.

    Raises:
        DataError: two images differ; both are named.
    """
    looked = [(fact.size, file) for tree in trees for fact, file in zip(tree.facts, tree.files, strict=True)]
    size, first = looked[0]
    for other, file in looked:
        if other != size:
            raise DataError(
                f"images have different sizes: {first} is {size[0]}x{size[1]}, {file} is {other[0]}x{other[1]} (H x W)."
                " Set data.size = [H, W] to resize all of them."
            )
    return size


def _files_under(folder: Path) -> list[Path]:
    """Every file below, in an order that does not depend on the file system; nothing if there is no folder."""
    found = [Path(where) / name for where, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _looked_at(path: Path, *, thoroughly: bool) -> ImageFacts | DataError:
    try:
        return looked_at(path, thoroughly=thoroughly)
    except DataError as error:
        return error
