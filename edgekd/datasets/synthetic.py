"""Made-up images with a pattern per class: no files, any size, for trying things out and for tests."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgekd import spec
from edgekd.datasets._arrays import samples_from_arrays
from edgekd.datasets._base import DataBundle, Dataset, InMemorySamples, Wanted
from edgekd.datasets._bundle import in_memory_bundle

__all__ = ["Synthetic"]

_WAVES = 4
_CHUNK = 256
_DEFAULT_SIZE = (16, 16)


class Synthetic(Dataset):
    """Each class is a sum of four plane waves; a sample is its class's pattern, moved a little, plus noise.

    The content depends on the options and the size (16x16 pixels unless `data.size` says otherwise), never on the
    recipe's seed. What a model scores here says nothing about real images.
    """

    class Options(spec.Options):
        """How many images of how many patterns."""

        classes: int = Field(10, ge=2, description="number of patterns")
        samples: int = Field(2000, ge=1, description="training and validation images together")
        test_samples: int = Field(500, ge=1, description="test images")
        channels: int = Field(1, ge=1, description="1 for grey, 3 for colour")
        noise: float = Field(0.15, ge=0.0, description="standard deviation of pixel noise; pixels are in [0, 1]")

    options: Options

    def load(self, wanted: Wanted) -> DataBundle:
        """See `Dataset.load`."""
        asked = self.options
        size = wanted.size or _DEFAULT_SIZE
        pool = _samples(asked, asked.samples, size, part=0)
        test = _samples(asked, asked.test_samples, size, part=1)
        classes = [f"pattern {k}" for k in range(asked.classes)]
        return in_memory_bundle(pool, test, classes=classes, wanted=wanted, source="synthetic")


def _samples(options: Synthetic.Options, count: int, size: tuple[int, int], *, part: int) -> InMemorySamples:
    """`count` images of balanced classes; `part` gives training and test images different noise."""
    patterns = np.random.default_rng([options.classes, options.channels])
    shape = (options.classes, options.channels, _WAVES)
    frequency = patterns.integers(-3, 4, (2, *shape)).astype(np.float32)  # cycles across the image, down and right
    phase = patterns.uniform(0, 2 * math.pi, shape).astype(np.float32)
    rng = np.random.default_rng([options.classes, options.channels, 1 + part])
    labels = np.arange(count) % options.classes
    images = np.empty((count, options.channels, *size), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = labels[start : start + _CHUNK]
        moved = rng.uniform(-0.06, 0.06, (2, len(chunk), 1, 1)).astype(np.float32)
        angle = phase[chunk] + 2 * math.pi * (frequency[:, chunk] * moved).sum(axis=0)
        waves = _plane_waves(frequency[:, chunk], angle, size)
        pixels = 0.5 + 0.15 * waves + options.noise * rng.standard_normal(waves.shape, dtype=np.float32)
        images[start : start + _CHUNK] = (pixels.clip(0, 1) * 255).round()
    return samples_from_arrays(images, labels, layout="NCHW", source="synthetic")


def _plane_waves(
    frequency: NDArray[np.float32], phase: NDArray[np.float32], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Sum over waves of sin(2 pi (f_y y + f_x x) + phase), y and x in [0, 1).

    Written with the sine of a sum, so that only rows and columns are computed for each wave.

    Args:
        frequency: shape (2, B, C, waves).
        phase: shape (B, C, waves).
        size: (H, W).

    Returns:
        Shape (B, C, H, W).
    """
    down, right = (np.arange(n, dtype=np.float32) / n for n in size)
    rows = 2 * math.pi * frequency[0][..., None] * down + phase[..., None]
    columns = 2 * math.pi * frequency[1][..., None] * right
    joined = np.concatenate([np.sin(rows), np.cos(rows)], axis=-2)
    across = np.concatenate([np.cos(columns), np.sin(columns)], axis=-2)
    waves: NDArray[np.float32] = joined.swapaxes(-1, -2) @ across
    return waves
