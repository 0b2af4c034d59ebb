"""Which samples calibrate an ONNX file without a recipe, and what was seen of them, kept for the next time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx

from edgekd.calibration import _store
from edgekd.calibration._selection import k_center
from edgekd.feeds import Feeds
from edgekd.pipeline._watcher import Watcher
from edgekd.quantize_onnx import Observed
from edgekd.recipe import FileSettings
from edgekd.targets._onnxruntime import OnnxRuntimeRunner

__all__ = ["KeptStatistics", "split"]

_POOL = 16  # candidates for each sample wanted: a whole large data set would take longer than everything else


def split(feeds: Feeds, settings: FileSettings, model: Path, watcher: Watcher) -> tuple[list[int], list[int]]:
    """(calibration samples, samples to compare on); the second is empty where everything was needed.

    Args:
        feeds: all samples.
        settings: how many, and which.
        model: the float file, whose outputs are the features of `k_center`.
        watcher: told about progress.
    """
    order: list[int] = list(range(feeds.count))
    if settings.selection != "first":
        order = np.random.default_rng(settings.seed).permutation(feeds.count).tolist()
    if settings.selection == "k_center" and settings.samples < feeds.count:
        pool = order[: settings.samples * _POOL]
        features = _features(feeds, pool, model, settings.threads, watcher)
        places = k_center(features, min(settings.samples, len(features)), seed=settings.seed).tolist()
        taken = [pool[place] for place in places]
        order = [*taken, *(one for one in order if one not in set(taken))]
    return order[: settings.samples], order[settings.samples :]


def _features(feeds: Feeds, ids: Sequence[int], model: Path, threads: int, watcher: Watcher) -> np.ndarray:
    """The float file's first output for each sample, flat: shape (N, features)."""
    rows: list[np.ndarray] = []
    with OnnxRuntimeRunner(model, threads=threads) as runner:
        for batch in feeds.batches(ids):
            found = np.asarray(next(iter(runner.run(batch).values())), np.float32)
            rows.append(found.reshape(len(found), -1))
            watcher.progress(min(len(rows) * feeds.batch, len(ids)), len(ids), "choosing samples")
    return np.concatenate(rows)


@dataclass(frozen=True)
class KeptStatistics:
    """A JSON file of what calibration saw, or none.

    Args:
        path: the file; None keeps nothing.
        fingerprint: what it must be of.
    """

    path: Path | None
    fingerprint: dict[str, str]

    @classmethod
    def of(cls, path: str | None, model: onnx.ModelProto, feeds: Feeds, ids: Sequence[int]) -> Self:
        """The file for a model and samples."""
        if path is None:
            return cls(None, {})
        content = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        return cls(Path(path), {"model": content, "samples": feeds.fingerprint(ids)})

    def read(self) -> Observed | None:
        """What it holds; None if there is no file.

        Raises:
            ArtifactError: it is damaged.
            MismatchError: it is of another model or of other samples.
        """
        if self.path is None or not self.path.exists():
            return None
        found = _store.load(self.path, fingerprint=self.fingerprint)
        return Observed(found.histograms, found.means)

    def write(self, observed: Observed) -> None:
        """Write the file unless it is there.

        Raises:
            StorageError: the disk refused.
        """
        if self.path is not None and not self.path.exists():
            statistics = _store.Statistics(self.fingerprint, observed.histograms, means=observed.means)
            _store.save(statistics, self.path)
