"""1,797 handwritten digits of 8x8 grey pixels, shipped with scikit-learn: nothing to download."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from edgekd.datasets._arrays import samples_from_arrays
from edgekd.datasets._base import DataBundle, Dataset, Wanted
from edgekd.datasets._bundle import in_memory_bundle

__all__ = ["Digits"]

_LEVELS = 16  # pixels are counts of set bits in 4x4 blocks: 0 to 16


class Digits(Dataset):
    """The UCI optical digits: small enough that a whole run takes a minute.

    A fifth of every class is the test split, the same in every run.

    Reference: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """

    def load(self, wanted: Wanted) -> DataBundle:
        """See `Dataset.load`."""
        found = load_digits()
        images = (found.images / _LEVELS).astype(np.float32)
        pool = samples_from_arrays(images, found.target, layout="NHWC", source="digits")
        names = [str(name) for name in found.target_names]
        return in_memory_bundle(pool, None, classes=names, wanted=wanted, source="digits")
