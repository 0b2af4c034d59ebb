"""Your own images: a folder with one subfolder of JPEG or PNG files per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from edgekd import spec
from edgekd.datasets._base import DataBundle, Dataset, InMemorySamples, Samples, Wanted
from edgekd.datasets._bundle import content_hash, preprocessing_of
from edgekd.datasets._image_files import decoded, in_threads
from edgekd.datasets._image_tree import ImageTree, class_folders, common_size, image_tree, readable
from edgekd.datasets._splits import check_class_counts, limited, split_indices, split_test

__all__ = ["FileSamples", "ImageFolder"]


@dataclass(frozen=True)
class FileSamples:
    """A split that is decoded at every batch.

    Args:
        files: one JPEG or PNG file per sample.
        labels: class indices, int64, shape (N,).
        channels: 1 for grey, 3 for RGB.
        size: (H, W) in pixels that every image is resized to.
    """

    files: tuple[Path, ...]
    labels: Tensor
    channels: int
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.files)

    def images(self, indices: Tensor) -> Tensor:
        """See `Samples.images`.

        Raises:
            DataError: a file is damaged or gone; the message names it.
        """
        return self.pixels(indices).to(torch.float32) / 255

    def pixels(self, indices: Tensor) -> Tensor:
        """The same images as uint8."""
        read = partial(decoded, channels=self.channels, size=self.size)
        result = torch.empty((len(indices), self.channels, *self.size), dtype=torch.uint8)
        for row, image in enumerate(in_threads(read, [self.files[i] for i in indices.tolist()])):
            result[row] = image
        return result


class ImageFolder(Dataset):
    """Images in folders named after their classes.

    `path` holds the training images, `val` and `test` hold theirs; what is not given is cut from `path`, class by
    class. Images are turned upright (EXIF), converted to `channels` and resized to `data.size` without keeping the
    aspect ratio. If all splits fit in `cache_mb`, they are decoded once and held as bytes; else at every batch.

    A file that is not a readable JPEG or PNG image is an error that names it. With `skip_broken = true` every file
    is decoded once beforehand, the broken ones are left out, logged, and listed in `DataBundle.skipped`.

    The fingerprint hashes each file's name, length, first and last 4 KiB: reading every byte of a large data set
    at each start would cost minutes, and times of change would differ on each copy of the same data.
    """

    class Options(spec.Options):
        """Where the images are and how they are read."""

        path: str = Field(description="folder of class folders")
        val: str | None = Field(None, description="folder of class folders for validation; default: cut from path")
        test: str | None = Field(None, description="folder of class folders for the test split; default: cut from path")
        test_fraction: float = Field(0.2, gt=0.0, lt=1.0, description="share cut for the test split if test is not set")
        channels: Literal[1, 3] = Field(3, description="3 for RGB, 1 for grey")
        skip_broken: bool = Field(False, description="leave out unreadable files instead of stopping")
        cache_mb: int = Field(2048, ge=0, description="decode once if all images fit in this much memory, in MiB")

    options: Options

    def load(self, wanted: Wanted) -> DataBundle:
        """See `Dataset.load`."""
        asked = self.options
        root = wanted.resolve(asked.path)
        classes = class_folders(root)
        pool, skipped = readable(image_tree(root, classes), skip_broken=asked.skip_broken)
        own: list[ImageTree | None] = []
        for folder in (asked.val, asked.test):
            tree = None
            if folder is not None:
                tree, left_out = readable(image_tree(wanted.resolve(folder), classes), skip_broken=asked.skip_broken)
                skipped += left_out
            own.append(tree)
        trees = self._cut(pool, own[0], own[1], classes, wanted)
        train, val, test = self._samples(trees, wanted.size or common_size(trees))
        preprocessing = preprocessing_of(train, wanted, source=str(root))
        return DataBundle(
            train=train,
            val=val,
            test=test,
            classes=classes,
            preprocessing=preprocessing,
            fingerprint=content_hash([tree.content() for tree in trees], classes, preprocessing),
            skipped=skipped,
        )

    def _cut(
        self, pool: ImageTree, val: ImageTree | None, test: ImageTree | None, classes: Sequence[str], wanted: Wanted
    ) -> tuple[ImageTree, ImageTree, ImageTree]:
        """(train, val, test): what has no folder of its own is cut from the pool."""
        least = 1 + (val is None) + (test is None)
        check_class_counts(pool.labels, classes, least=least, source=str(pool.root))
        if test is None:
            rest, chosen = split_test(pool.labels, self.options.test_fraction)
            pool, test = pool.take(rest), pool.take(chosen)
        if val is None:
            rest, chosen = split_indices(pool.labels, wanted.val_fraction, wanted.seed)
            pool, val = pool.take(rest), pool.take(chosen)
        return pool.take(limited(pool.labels, wanted.limit_train, seed=wanted.seed)), val, test

    def _samples(self, trees: Sequence[ImageTree], size: tuple[int, int]) -> list[Samples]:
        """Decoded now if all of them fit in `cache_mb`."""
        channels = self.options.channels
        lazy = [FileSamples(tree.files, torch.from_numpy(tree.labels), channels, size) for tree in trees]
        needed = sum(len(split) for split in lazy) * channels * size[0] * size[1]
        if needed > self.options.cache_mb * 2**20:
            return list(lazy)
        return [InMemorySamples(split.pixels(torch.arange(len(split))), split.labels) for split in lazy]
