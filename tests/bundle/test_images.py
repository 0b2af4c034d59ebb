"""The device's preprocessing against that of the data sets, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.agent.images import prepare, resize
from edgekd.datasets._base import InMemorySamples
from edgekd.datasets._resize import resized
from edgekd.spec import Preprocessing

# from 2 up: torch's own antialiased resize to a width of 1 reads wrong columns for one channel
SIDE = st.integers(2, 70)


def by_torch(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resized(torch.from_numpy(image).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).numpy()


@settings(max_examples=80, deadline=None)
@given(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE), st.sampled_from([1, 3]), st.integers(0, 1 << 30))
def test_resize_is_that_of_the_data_sets(old: tuple[int, int], new: tuple[int, int], channels: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*old, channels)).astype(np.uint8)
    ours, theirs = resize(image, new).astype(int), by_torch(image, new).astype(int)
    # both add the same single-precision products; where a sum ends at half a level, the last bit decides the rounding
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).sum() <= 2 + 0.01 * ours.size


def test_resize_of_a_real_size_differs_nowhere() -> None:
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3)).astype(np.uint8)
    differing = (resize(image, (224, 224)) != by_torch(image, (224, 224))).mean()
    assert differing < 1e-4


def test_resize_by_hand() -> None:
    """Halving takes a triangle four pixels wide: weights 1, 3, 3, 1 eighths, those beyond the edge left out."""
    row = np.asarray([0, 80, 160, 240], np.uint8).reshape(1, 4, 1)
    # first: (3*0 + 3*80 + 1*160) / 7 = 57.14; second by symmetry: (80 + 3*160 + 3*240) / 7 = 182.86
    assert resize(row, (1, 2)).ravel().tolist() == [57, 183]
    # doubling: 0, 0.75*0 + 0.25*80, 0.25*0 + 0.75*80, ...
    assert resize(row, (1, 8)).ravel().tolist() == [0, 20, 60, 100, 140, 180, 220, 240]


def test_nearest_by_hand() -> None:
    row = np.asarray([0, 80, 160, 240], np.uint8).reshape(1, 4, 1)
    assert resize(row, (1, 2), "nearest").ravel().tolist() == [0, 160]
    assert resize(row, (2, 8), "nearest")[1].ravel().tolist() == [0, 0, 80, 80, 160, 160, 240, 240]


def test_same_size_is_left_alone() -> None:
    image = np.zeros((3, 4, 1), np.uint8)
    assert resize(image, (3, 4)) is image


@pytest.mark.parametrize("channels", [1, 3])
def test_prepared_image_is_bit_for_bit_that_of_training(channels: int) -> None:
    given_ = Preprocessing(
        size=[9, 7], channels=channels, mean=[0.1, 0.45, 0.9][:channels], std=[0.3, 0.21, 0.7][:channels]
    )
    images = np.random.default_rng(1).integers(0, 256, (5, 9, 7, channels)).astype(np.uint8)
    samples = InMemorySamples(torch.from_numpy(images).permute(0, 3, 1, 2), torch.zeros(5, dtype=torch.int64))
    wanted = given_.normalise(samples.images(torch.arange(5))).numpy()
    found = np.concatenate([prepare(image, given_.model_dump()) for image in images])
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted)


def test_value_range_by_hand() -> None:
    given_ = {"size": [1, 1], "channels": 1, "mean": [0.5], "std": [2.0], "value_range": [-1.0, 1.0]}
    # 51 / 255 = 0.2; 0.2 * 2 - 1 = -0.6; (-0.6 - 0.5) / 2 = -0.55
    assert prepare(np.asarray([[51]], np.uint8), given_).ravel() == pytest.approx([-0.55])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_images_are_refused(image: np.ndarray) -> None:
    given_ = {"size": [4, 4], "channels": 3, "mean": [0.0] * 3, "std": [1.0] * 3}
    with pytest.raises(ValueError, match=r"an image must be uint8 of shape \(H, W, 3\), got "):
        prepare(image, given_)
