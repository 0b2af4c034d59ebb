"""Your own arrays in one .npz file: images, labels and, if you have them, test_images, test_labels."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgekd import spec
from edgekd.datasets._arrays import Layout, class_names, samples_from_arrays
from edgekd.datasets._base import DataBundle, Dataset, Wanted
from edgekd.datasets._bundle import in_memory_bundle
from edgekd.errors import DataError, did_you_mean

__all__ = ["Npz"]

# what numpy and zipfile raise on damaged, encrypted or foreign files; a damaged header may ask for any memory
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


class Npz(Dataset):
    """Arrays saved with `numpy.savez(path, images=..., labels=...)`.

    With test arrays in the file, those are the test split; else a share of every class, the same in every run.
    Images to learn from may have no label (-1): they are all in the training split, never in validation or test.
    """

    class Options(spec.Options):
        """Which file, and how to read its arrays."""

        path: str = Field(description="the .npz file")
        layout: Layout = Field(
            "NHWC", description="axis order of 4-dimensional images; 3-dimensional ones are (N, H, W)"
        )
        images: str = Field(
            "images", description="name of the array of images: integers in [0, 255] or floats in [0, 1]"
        )
        labels: str = Field("labels", description="name of the array of class indices, from 0; -1 for none")
        test_images: str = Field("test_images", description="name of the array of test images, if the file has one")
        test_labels: str = Field("test_labels", description="name of the array of test labels, if the file has one")
        classes: list[str] | None = Field(None, description="label names; default: '0', '1', ...")
        test_fraction: float = Field(0.2, gt=0.0, lt=1.0, description="share kept for the test split if there is none")

    options: Options

    def load(self, wanted: Wanted) -> DataBundle:
        """See `Dataset.load`."""
        asked = self.options
        path = wanted.resolve(asked.path)
        arrays = _arrays(path, [asked.images, asked.labels], [asked.test_images, asked.test_labels])
        pool = samples_from_arrays(arrays[0], arrays[1], layout=asked.layout, source=str(path), unlabelled=True)
        test = None
        if len(arrays) == 4:
            source = f"{path} ({asked.test_images})"
            test = samples_from_arrays(arrays[2], arrays[3], layout=asked.layout, source=source)
        splits = [pool] if test is None else [pool, test]
        classes = class_names(asked.classes, [split.labels for split in splits], source=str(path))
        return in_memory_bundle(
            pool, test, classes=classes, wanted=wanted, source=str(path), test_fraction=asked.test_fraction
        )


def _arrays(path: Path, needed: list[str], optional: list[str]) -> list[NDArray[Any]]:
    """The arrays called `needed`, and those called `optional` if they are there; never unpickles."""
    try:
        # opened here, since numpy leaves the file open when it finds it damaged
        with path.open("rb") as raw:
            file = np.load(raw, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise DataError(f"{path}: holds a single array. Save with numpy.savez(path, images=..., labels=...).")
            missing = [name for name in needed if name not in file.files]
            if missing:
                raise DataError(f"{path}: has no array '{missing[0]}'. {did_you_mean(missing[0], file.files)}")
            have = [name for name in optional if name in file.files]
            if len(have) == 1:
                other = next(name for name in optional if name not in have)
                raise DataError(f"{path}: has '{have[0]}' but not '{other}'. The test split needs both.")
            return [file[name] for name in (*needed, *have)]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Set data.path to a .npz file.") from error
    except _DAMAGE as error:
        raise DataError(
            f"{path}: not an .npz file of plain arrays, or a damaged one ({error}). Pickled objects are never loaded;"
            " save with numpy.savez(path, images=..., labels=...)."
        ) from error
