from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgekd.datasets._arrays import class_names, samples_from_arrays
from edgekd.errors import DataError

LABELS = np.array([0, 1])


def make(images: Any, labels: Any = LABELS, *, layout: Any = "NHWC") -> Any:
    return samples_from_arrays(images, labels, layout=layout, source="mine")


def test_channels_come_second_when_they_were_last() -> None:
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    pixels = make(images).pixels
    assert pixels.shape == (2, 3, 4, 5)
    assert pixels[1, 2, 3, 4] == images[1, 3, 4, 2]


def test_channels_stay_second_when_the_layout_says_so() -> None:
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    assert np.array_equal(make(images, layout="NCHW").pixels.numpy(), images)


def test_grey_images_get_one_channel() -> None:
    assert make(np.zeros((2, 4, 5), dtype=np.uint8)).pixels.shape == (2, 1, 4, 5)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.uint8, torch.uint8),
        (np.int64, torch.uint8),
        (np.uint16, torch.uint8),
        (np.float16, torch.float32),
        (np.float64, torch.float32),
    ],
)
def test_integers_become_bytes_and_floats_float32(given: Any, kept: torch.dtype) -> None:
    pixels = make(np.ones((2, 4, 5), dtype=given)).pixels
    assert pixels.dtype == kept
    assert bool((pixels == 1).all())


def test_torch_tensors_and_lists_are_taken() -> None:
    assert make(torch.zeros(2, 4, 5), torch.tensor([0, 1])).labels.tolist() == [0, 1]
    assert make([[[0, 255]], [[1, 2]]], [1, 0]).pixels[0].tolist() == [[[0, 255]]]


def test_the_data_set_does_not_change_when_the_array_does_later() -> None:
    images = np.zeros((2, 4, 5), dtype=np.uint8)
    samples = make(images)
    images[:] = 9
    assert int(samples.pixels.max()) == 0


def with_value(value: float) -> np.ndarray:
    images = np.zeros((2, 4, 5))
    images[1, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (with_value(np.nan), LABELS, "mine: image 1 holds NaN or infinity"),
        (with_value(np.inf), LABELS, "mine: image 1 holds NaN or infinity"),
        (with_value(-np.inf), LABELS, "mine: image 1 holds NaN or infinity"),
        (with_value(255.0), LABELS, r"float images must be in \[0, 1\], got values from 0 to 255. Scale them"),
        (with_value(-0.5), LABELS, r"must be in \[0, 1\], got values from -0.5 to 0"),
        (
            with_value(4095).astype(np.uint16),
            LABELS,
            r"integer images must be in \[0, 255\], got values from 0 to 4095",
        ),
        (np.zeros((2, 4, 5), dtype=bool), LABELS, "images must be integers or floats, got bool"),
        (np.zeros((2, 4, 5), dtype="U1"), LABELS, "images must be integers or floats, got <U1"),
        (np.zeros((2, 4, 5), dtype=object), LABELS, "images hold Python objects"),
        ([[[1, 2]], [[1, 2, 3]]], LABELS, "images are not one array"),
        (np.zeros((2, 20)), LABELS, r"images must have the shape \(N, H, W\) or four dimensions .*, got \(2, 20\)"),
        (np.zeros((0, 4, 5)), np.zeros(0, dtype=int), r"there are no images in an array of shape \(0, 4, 5\)"),
        (np.zeros((2, 0, 5)), LABELS, r"there are no images in an array of shape \(2, 0, 5\)"),
        (np.zeros((3, 4, 5)), LABELS, "3 images but 2 labels"),
        (np.zeros((2, 4, 5)), np.array([0, -1]), "label -1 of sample 1 is negative"),
        (np.zeros((2, 4, 5)), np.array([0.0, 1.0]), r"labels must be integers of shape \(N,\), got float64"),
        (np.zeros((2, 4, 5)), np.eye(2, dtype=int), r"labels must be integers of shape \(N,\), got int64 of shape"),
        (np.zeros((2, 4, 5)), np.zeros(0, dtype=int), "there are no labels"),
        (np.zeros((2, 3, 32, 32)), LABELS, 'read as NHWC have 32 channels. Set layout = "NCHW"'),
    ],
)
def test_bad_arrays_are_refused(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(images, labels)


def test_samples_without_label_are_taken_only_where_asked() -> None:
    images = np.zeros((3, 4, 5))
    made = samples_from_arrays(images, np.array([1, -1, 0]), layout="NHWC", source="mine", unlabelled=True)
    assert made.labels.tolist() == [1, -1, 0]
    with pytest.raises(DataError, match="label -2 of sample 0 is negative"):
        samples_from_arrays(images, np.array([-2, -1, 0]), layout="NHWC", source="mine", unlabelled=True)
    with pytest.raises(DataError, match="no sample has a label, so there are no classes"):
        samples_from_arrays(images, np.array([-1, -1, -1]), layout="NHWC", source="mine", unlabelled=True)


def test_the_other_layout_is_proposed_when_channels_are_last_but_read_as_first() -> None:
    with pytest.raises(DataError, match=r'read as NCHW have 32 channels\. Set layout = "NHWC"'):
        make(np.zeros((2, 32, 32, 3)), layout="NCHW")


def test_class_names_are_indices_when_none_are_given() -> None:
    assert class_names(None, [torch.tensor([0, 2]), torch.tensor([1])], source="mine") == ("0", "1", "2")


def test_labels_without_a_name_and_names_that_repeat_are_refused() -> None:
    with pytest.raises(DataError, match=r"label 2 is out of range for 2 classes .*must be in \[0, 1\]"):
        class_names(["a", "b"], [torch.tensor([0, 2])], source="mine")
    with pytest.raises(DataError, match="class name 'a' is there twice"):
        class_names(["a", "b", "a"], [torch.tensor([0])], source="mine")
