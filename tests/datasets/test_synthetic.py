from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.datasets._base import DataBundle, Wanted
from edgekd.datasets.synthetic import Synthetic, _plane_waves
from edgekd.errors import DataError


def load(*, wanted: Wanted | None = None, **options: Any) -> DataBundle:
    return Synthetic(Synthetic.Options(**options)).load(wanted or Wanted())


def test_a_plane_wave_is_its_formula_when_computed_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    frequency = rng.integers(-3, 4, (2, 1, 1, 2)).astype(np.float32)
    phase = rng.random((1, 1, 2)).astype(np.float32)
    got = _plane_waves(frequency, phase, (4, 5))
    for y in range(4):
        for x in range(5):
            angle = 2 * math.pi * (frequency[0, 0, 0] * y / 4 + frequency[1, 0, 0] * x / 5) + phase[0, 0]
            # 1e-5: float32 angles up to 20
            assert got[0, 0, y, x] == pytest.approx(float(np.sin(angle).sum()), abs=1e-5)


def test_classes_are_told_apart_by_the_nearest_mean() -> None:
    bundle = load(classes=6)
    images = bundle.train.images(torch.arange(len(bundle.train))).flatten(1)
    means = torch.stack([images[bundle.train.labels == k].mean(0) for k in range(6)])
    tested = bundle.test.images(torch.arange(len(bundle.test))).flatten(1)
    right = torch.cdist(tested, means).argmin(1) == bundle.test.labels
    assert right.to(torch.float32).mean() > 0.95


def test_counts_channels_and_size_are_those_asked() -> None:
    bundle = load(classes=3, samples=60, test_samples=9, channels=3, wanted=Wanted(size=(20, 12)))
    assert len(bundle.train) + len(bundle.val) == 60
    assert torch.bincount(bundle.test.labels).tolist() == [3, 3, 3]
    assert bundle.test.images(torch.arange(9)).shape == (9, 3, 20, 12)


def test_too_few_samples_for_the_classes_are_refused() -> None:
    with pytest.raises(DataError, match="every class needs at least 2 samples"):
        load(classes=10, samples=12)
