"""Your own function, `package.module:function`, called to give the data."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch

from edgekd.datasets._arrays import Layout, class_names, samples_from_arrays
from edgekd.datasets._base import DataBundle, Dataset, Samples, Wanted
from edgekd.datasets._bundle import in_memory_bundle
from edgekd.errors import DataError, EdgeKDError, UsageError, did_you_mean

__all__ = ["UserDataset"]

_KEYS = ("images", "labels", "test_images", "test_labels", "classes", "layout")
_RETURNS = (
    "Return a DataBundle, a tuple (images, labels) or (images, labels, test_images, test_labels), or a dict with those"
    f" names as keys ({', '.join(_KEYS)})."
)


class UserDataset(Dataset):
    """Calls `function(wanted)` with a `Wanted` and takes what it returns.

    - a `DataBundle` is taken as it is: the function has done the split, and `wanted` says what was asked of it;
    - a tuple `(images, labels)` or `(images, labels, test_images, test_labels)`, or a dict with those names as
      keys and, optionally, `classes` (label names) and `layout` ("NHWC" or "NCHW"): edgekd splits, resizes and
      normalises. Arrays are NumPy or torch: images (N, H, W) or four-dimensional in `layout` order ("NHWC"
      unless said), integers in [0, 255] or floats in [0, 1]; labels integers of shape (N,).

    A data set with options of its own is a subclass of `Dataset`, named in the same way.
    """

    takes_argument = True

    def load(self, wanted: Wanted) -> DataBundle:
        """See `Dataset.load`."""
        given = self._called(wanted)
        if isinstance(given, DataBundle):
            _check_bundle(given, self.argument)
            return given
        parts = _by_name(given, self.argument)
        layout = parts.get("layout", "NHWC")
        if layout not in get_args(Layout):
            raise DataError(f"{self.argument}: layout must be one of {', '.join(get_args(Layout))}, got {layout!r}.")
        pool = samples_from_arrays(parts["images"], parts["labels"], layout=layout, source=self.argument)
        test = None
        if "test_images" in parts:
            source = f"{self.argument} (test)"
            test = samples_from_arrays(parts["test_images"], parts["test_labels"], layout=layout, source=source)
        labels = [split.labels for split in (pool, test) if split is not None]
        names = None if parts.get("classes") is None else [str(name) for name in parts["classes"]]
        classes = class_names(names, labels, source=self.argument)
        return in_memory_bundle(pool, test, classes=classes, wanted=wanted, source=self.argument)

    def _called(self, wanted: Wanted) -> object:
        function = _function(self.argument)
        try:
            return function(wanted)
        except EdgeKDError:
            raise
        except Exception as error:
            # the fault is in the user's code: say where, since its traceback is not shown for a DataError
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise DataError(
                f"dataset '{self.argument}' failed: {type(error).__name__}: {error} ({frame.filename}, line"
                f" {frame.lineno}). It is called with one argument, a Wanted."
            ) from error


def _function(name: str) -> Callable[[Wanted], object]:
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"dataset '{name}': {error}. It must name a function as package.module:function, in a file beside the"
            " recipe or in an installed package."
        ) from error
    if not callable(found):
        raise UsageError(f"dataset '{name}' must be a function, got {type(found).__name__}.")
    function: Callable[[Wanted], object] = found
    return function


def _by_name(given: object, name: str) -> Mapping[str, Any]:
    if isinstance(given, tuple) and len(given) in (2, 4):
        return dict(zip(_KEYS, given, strict=False))
    if not isinstance(given, Mapping):
        what = f"a tuple of {len(given)}" if isinstance(given, tuple) else type(given).__name__
        raise DataError(f"dataset '{name}' returned {what}. {_RETURNS}")
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise DataError(f"dataset '{name}' returned an unknown key '{unknown[0]}'. {did_you_mean(unknown[0], _KEYS)}")
    missing = [key for key in ("images", "labels") if key not in given]
    if ("test_images" in given) != ("test_labels" in given):
        missing += [key for key in ("test_images", "test_labels") if key not in given]
    if missing:
        raise DataError(f"dataset '{name}' returned no '{missing[0]}'. {_RETURNS}")
    return given


def _check_bundle(bundle: DataBundle, name: str) -> None:
    """Look at one image and all labels of each split."""
    splits: dict[str, Samples] = {"train": bundle.train, "val": bundle.val, "test": bundle.test}
    for split, samples in splits.items():
        if len(samples) == 0 or len(samples.labels) != len(samples):
            raise DataError(f"{name}: {split} has {len(samples)} samples and {len(samples.labels)} labels.")
        class_names(bundle.classes, [samples.labels], source=f"{name} ({split})")
        if samples.labels.dtype != torch.int64 or int(samples.labels.min()) < 0:
            raise DataError(f"{name} ({split}): labels must be int64 and >= 0, got {samples.labels.dtype}.")
        image = samples.images(torch.arange(1))
        if image.dtype != torch.float32 or image.shape != (1, *bundle.preprocessing.input_shape):
            raise DataError(
                f"{name} ({split}): images are {image.dtype} of shape {tuple(image.shape[1:])}, the preprocessing says"
                f" float32 of shape {bundle.preprocessing.input_shape} (C, H, W)."
            )
