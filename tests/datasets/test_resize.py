from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from edgekd.datasets._base import InMemorySamples
from edgekd.datasets._resize import resized, resized_once


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_halving_averages_neighbours_with_the_weights_of_a_triangle() -> None:
    # from 4 pixels to 2 the triangle is 4 wide: weights 1 3 3 1, of which the border cuts one off
    row = torch.tensor([[[[0.0, 0.7, 1.4, 2.1]]]])
    left = (3 * 0.0 + 3 * 0.7 + 1 * 1.4) / 7
    right = (1 * 0.7 + 3 * 1.4 + 3 * 2.1) / 7
    torch.testing.assert_close(resized(row, (1, 2))[0, 0, 0], torch.tensor([left, right]))


@pytest.mark.parametrize("size", [(11, 7), (40, 50), (20, 5)])
def test_the_result_is_pillows_bilinear_within_one_level(size: tuple[int, int]) -> None:
    image = random_bytes(1, 3, 20, 30)
    pillow = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    ours = resized(image, size)[0].permute(1, 2, 0).numpy().astype(int)
    # Pillow rounds after each of its two passes
    assert np.abs(ours - np.asarray(pillow).astype(int)).max() <= 1


def test_pixels_are_the_same_when_resized_once_or_at_every_batch() -> None:
    pixels = random_bytes(1500, 1, 12, 12)
    labels = torch.zeros(1500, dtype=torch.int64)
    once = InMemorySamples(resized_once(pixels, (8, 8)), labels)
    each = InMemorySamples(pixels, labels, size=(8, 8))
    ids = torch.tensor([0, 1023, 1024, 1499])
    assert torch.equal(once.images(ids), each.images(ids))


def test_images_are_left_alone_when_they_have_the_size() -> None:
    image = random_bytes(1, 1, 5, 5)
    assert resized(image, (5, 5)) is image
    assert resized(image, None) is image


def test_bytes_are_scaled_to_one_and_floats_are_not() -> None:
    ids = torch.arange(1)
    label = torch.zeros(1, dtype=torch.int64)
    assert InMemorySamples(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8), label).images(ids).item() == pytest.approx(
        0.2
    )
    assert InMemorySamples(torch.full((1, 1, 1, 1), 0.2), label).images(ids).item() == pytest.approx(0.2)
