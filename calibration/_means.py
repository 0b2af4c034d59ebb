"""A streaming mean of arrays over samples."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

__all__ = ["Mean"]


class Mean:
    """The sum of one array for each sample, in float64, and how many there were."""

    def __init__(self) -> None:
        self.samples = 0
        self._sum: np.ndarray | None = None

    def add(self, total: np.ndarray, samples: int) -> None:
        """Add the sum over some samples."""
        self._sum = total.astype(np.float64) if self._sum is None else self._sum + total
        self.samples += samples

    def merge(self, other: Mean) -> None:
        """Add what another one saw."""
        if other._sum is not None:
            self.add(other._sum, other.samples)

    @property
    def value(self) -> np.ndarray:
        """The mean, float64.

        Raises:
            ValueError: no sample was seen.
        """
        if self._sum is None or self.samples == 0:
            raise ValueError("a mean of no samples")
        return self._sum / self.samples

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        total = np.zeros(0) if self._sum is None else self._sum
        return {"samples": self.samples, "shape": list(total.shape), "sum": total.ravel().tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild what `to_json` gave."""
        mean = cls()
        if values["samples"]:
            mean.add(np.array(values["sum"], np.float64).reshape(values["shape"]), int(values["samples"]))
        return mean
