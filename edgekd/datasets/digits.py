"""1,797 handwritten digits of 8x8 grey pixels, shipped with scikit-learn: nothing to download."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.datasets._arrays import samples_from_arrays
from edgekd.datasets._base import DataBundle, Dataset, Wanted
from edgekd.datasets._bundle import in_memory_bundle
from edgekd.errors import DataError

__all__ = ["Digits"]

_LEVELS = 16  # pixels are counts of set bits in 4x4 blocks: 0 to 16


class Digits(Dataset):
    """The UCI optical digits: small enough that a whole run takes a minute.

    A fifth of every class is the test split, the same in every run.

    Reference: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """

    def load(self, wanted: Wanted) -> DataBundle:
        """See `Dataset.load`."""
        table = _table()
        images = (table[:, :-1].reshape(-1, 8, 8) / _LEVELS).astype(np.float32)
        pool = samples_from_arrays(images, table[:, -1].astype(np.int64), layout="NHWC", source="digits")
        names = [str(digit) for digit in range(10)]
        return in_memory_bundle(pool, None, classes=names, wanted=wanted, source="digits")


def _table() -> NDArray[np.float64]:
    """The file that scikit-learn ships: 64 pixels and the digit a row; importing its reader would take two seconds.

    Raises:
        DataError: this scikit-learn has no such file.
    """
    spec = importlib.util.find_spec("sklearn")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path()
    file = folder / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():
        raise DataError(f"{file} is missing: this scikit-learn does not ship its digits. Install another version.")
    with gzip.open(file, "rt", encoding="ascii") as lines:
        return np.loadtxt(lines, delimiter=",")
