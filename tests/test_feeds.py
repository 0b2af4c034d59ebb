"""Samples for models without a recipe: npz files and folders of images, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgekd.errors import DataError, MismatchError
from edgekd.feeds import preprocessing_of, read_feeds
from edgekd.spec import Preprocessing, TensorSpec

IMAGE = TensorSpec(name="image", shape=["B", 3, 4, 4])
IDS = TensorSpec(name="ids", dtype="int64", shape=["B", 5])


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def test_arrays_are_found_by_name_with_labels_beside_them(tmp_path):
    images, labels = np.arange(480, dtype=np.float32).reshape(10, 3, 4, 4), np.arange(10)
    feeds = read_feeds(saved(tmp_path, image=images, labels=labels), [IMAGE])
    assert feeds.count == 10
    assert feeds.labels is not None
    assert feeds.labels.tolist() == labels.tolist()
    batches = list(feeds.batches([3, 1, 2]))
    np.testing.assert_array_equal(batches[0]["image"], images[[3, 1, 2]])


def test_a_single_array_serves_a_single_input_and_an_npy_file_too(tmp_path):
    np.save(tmp_path / "data.npy", np.zeros((2, 3, 4, 4)))
    for path in (saved(tmp_path, whatever=np.zeros((2, 3, 4, 4), np.float32)), tmp_path / "data.npy"):
        (batch,) = read_feeds(path, [IMAGE]).batches([0, 1])
        assert batch["image"].dtype == np.float32


def test_several_inputs_need_their_names(tmp_path):
    path = saved(tmp_path, image=np.zeros((2, 3, 4, 4), np.float32), ids=np.zeros((2, 5), np.int64))
    assert set(next(iter(read_feeds(path, [IMAGE, IDS]).batches([0])))) == {"image", "ids"}
    with pytest.raises(MismatchError, match=r"no array 'ids' \(has: image\).*The model takes 'image'"):
        read_feeds(saved(tmp_path, image=np.zeros((2, 3, 4, 4), np.float32)), [IMAGE, IDS])


def test_a_fixed_batch_is_kept_and_what_does_not_fill_one_is_left_out(tmp_path):
    fixed = TensorSpec(name="image", shape=[2, 3, 4, 4])
    feeds = read_feeds(saved(tmp_path, image=np.zeros((5, 3, 4, 4), np.float32)), [fixed])
    assert [len(batch["image"]) for batch in feeds.batches(range(5))] == [2, 2]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 1, 4, 4), np.float32), r"'image' has shape \[2, 1, 4, 4\]; the model takes \['B', 3, 4, 4\]"),
        (np.zeros((2, 3, 4), np.float32), "has shape"),
        (np.zeros((2, 3, 4, 4), np.uint8), "'image' is uint8, the model takes float32"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, array, message):
    with pytest.raises(MismatchError, match=message):
        read_feeds(saved(tmp_path, image=array), [IMAGE])


def test_empty_missing_damaged_and_uneven_data_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no samples"):
        read_feeds(saved(tmp_path, image=np.zeros((0, 3, 4, 4), np.float32)), [IMAGE])
    with pytest.raises(DataError, match="no such file or folder"):
        read_feeds(tmp_path / "nothing.npz", [IMAGE])
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"broken.npz: cannot be read"):
        read_feeds(tmp_path / "broken.npz", [IMAGE])
    uneven = saved(tmp_path, image=np.zeros((3, 3, 4, 4), np.float32), labels=np.zeros(2, np.int64))
    with pytest.raises(MismatchError, match="differ in their number of samples"):
        read_feeds(uneven, [IMAGE])


def test_a_pickle_in_an_npz_is_not_opened(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, image=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_feeds(path, [IMAGE])


def test_a_folder_of_images_is_normalised_as_told(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "sub" / "b.png")
    pixels = Preprocessing(size=[4, 4], channels=3, mean=[0.5] * 3, std=[0.25] * 3)
    feeds = read_feeds(tmp_path, [IMAGE], preprocessing=pixels)
    (batch,) = feeds.batches([0, 1])
    assert feeds.count == 2
    np.testing.assert_allclose(batch["image"][0], 2.0)
    np.testing.assert_allclose(batch["image"][1], -2.0)


def test_a_folder_without_images_or_normalisation_is_refused(tmp_path):
    with pytest.raises(DataError, match="no JPEG or PNG file"):
        read_feeds(tmp_path, [IMAGE])
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"does not say how its images are normalised. Give --mean and --std"):
        read_feeds(tmp_path, [IMAGE])
    with pytest.raises(MismatchError, match="a folder of images feeds one input"):
        read_feeds(tmp_path, [IMAGE, IDS])


def test_preprocessing_comes_from_the_options_or_from_the_file():
    model = onnx.ModelProto()
    assert preprocessing_of(model, [IMAGE], mean=None, std=None) is None
    given = preprocessing_of(model, [IMAGE], mean=[0.1, 0.2, 0.3], std=None)
    assert given is not None
    assert (given.size, given.mean, given.std) == ([4, 4], [0.1, 0.2, 0.3], [1.0, 1.0, 1.0])
    onnx.helper.set_model_props(model, {"edgekd.preprocessing": given.model_dump_json()})
    assert preprocessing_of(model, [IMAGE], mean=None, std=None) == given
    with pytest.raises(MismatchError, match="one value per channel"):
        preprocessing_of(model, [IMAGE], mean=[0.1], std=None)
