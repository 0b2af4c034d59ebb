"""What calibration saw in a run, kept as JSON in its folder: another calibrator does not look at the data again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from edgekd.artifact import content_hash
from edgekd.calibration import _store
from edgekd.calibration._histogram import Histogram
from edgekd.errors import ArtifactError
from edgekd.pipeline._run import Run

__all__ = ["RunStatistics"]

FOLDER = "calibration"


@dataclass(frozen=True)
class RunStatistics:
    """The calibration statistics of a run, one file for each graph and choice of samples.

    Args:
        folder: of the files.
        data: fingerprint of the data set.
        samples: SHA-256 of the sample numbers, in their order.
    """

    folder: Path
    data: str
    samples: str

    @classmethod
    def of(cls, run: Run, ids: Tensor) -> RunStatistics:
        """For a run and the samples that it calibrates on."""
        numbers = hashlib.sha256(ids.cpu().numpy().tobytes()).hexdigest()
        return cls(run.out / FOLDER, run.data.fingerprint, numbers)

    def recall(self, graph: str) -> Mapping[str, Histogram] | None:
        """What was seen of a graph; None if nothing is kept, or what is kept is damaged: it is made again then."""
        path = self._path(graph)
        if not path.exists():
            return None
        try:
            return _store.load(path, fingerprint=self._fingerprint(graph)).histograms
        except ArtifactError:
            return None

    def keep(self, graph: str, histograms: Mapping[str, Histogram]) -> None:
        """Write the file.

        Raises:
            StorageError: the disk refused.
        """
        _store.save(_store.Statistics(self._fingerprint(graph), histograms), self._path(graph))

    def _fingerprint(self, graph: str) -> dict[str, str]:
        return {"graph": graph, "data": self.data, "samples": self.samples}

    def _path(self, graph: str) -> Path:
        return self.folder / f"statistics-{content_hash(self._fingerprint(graph))[:8]}.json"
