from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.datasets._base import DataBundle, Wanted
from edgekd.datasets._idx import read_idx
from edgekd.datasets.fashion_mnist import FashionMNIST
from edgekd.errors import DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzip"])
def test_an_idx_file_gives_its_array(tmp_path: Path, pack: type[bytes]) -> None:
    path = tmp_path / "images"
    path.write_bytes(pack(idx(IMAGES)))
    assert np.array_equal(read_idx(path, dimensions=3), IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(IMAGES)[:-1], r"promises 24 bytes for the shape \(2, 3, 4\), it holds only 23"),
        (idx(IMAGES) + b"x", "it holds more"),
        (idx(IMAGES)[:10], "not an IDX file of 3-dimensional"),
        (idx(IMAGES[0]), "it starts with 00 00 08 02, should be 00 00 08 03"),
        (b"\x89PNG\r\n", "it starts with 89 50 4e 47"),
        (b"", "not an IDX file"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "it holds only 0"),
        (gzip.compress(idx(IMAGES))[:-12], "the gzip file is truncated or damaged"),
        (gzip.compress(idx(IMAGES))[:-5] + b"\0\0\0\0\0", "the gzip file is truncated or damaged"),
        (b"\x1f\x8b" + b"\xff" * 30, "the gzip file is truncated or damaged"),
    ],
    # not the content: gzip writes the time into it, and every process must collect the same tests
    ids=["short", "long", "cut head", "labels", "png", "empty", "no room", "cut gzip", "zeroed gzip", "no gzip"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)


def load(folder: Path) -> DataBundle:
    return FashionMNIST(FashionMNIST.Options(path=str(folder))).load(Wanted())


def test_a_folder_that_is_not_there_says_how_to_get_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist.*apt install dataset-fashion-mnist.*data\.path"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no train-images-idx3-ubyte\.gz \(or train-images-idx3-ubyte\)"):
        load(tmp_path)


def write_small(folder: Path, *, top_label: int = 9, images: int = 40) -> None:
    rng = np.random.default_rng(0)
    for stem in ("train", "t10k"):
        labels = (np.arange(40) % 10).astype(np.uint8)
        labels[-1] = top_label
        pixels = rng.integers(0, 256, (images, 5, 5), dtype=np.uint8)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(pixels))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))


def test_a_label_out_of_range_is_refused(tmp_path: Path) -> None:
    write_small(tmp_path, top_label=10)
    with pytest.raises(DataError, match="label 10 is out of range for 10 classes"):
        load(tmp_path)


def test_images_and_labels_of_different_length_are_refused(tmp_path: Path) -> None:
    write_small(tmp_path, images=39)
    with pytest.raises(DataError, match="39 images but 40 labels"):
        load(tmp_path)


def test_a_relative_path_starts_at_the_folder_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_small(tmp_path / "data")
    bundle = FashionMNIST(FashionMNIST.Options(path="data")).load(Wanted(base_folder=tmp_path))
    assert len(bundle.test) == 40


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_official_files_give_the_official_numbers() -> None:
    bundle = FashionMNIST(FashionMNIST.Options()).load(Wanted(val_fraction=1 / 6))
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (50_000, 10_000, 10_000)
    assert torch.bincount(bundle.test.labels).tolist() == [1000] * 10
    # the known mean and standard deviation of all 60,000 are 0.2860 and 0.3530
    assert bundle.preprocessing.mean == pytest.approx([0.2860], abs=2e-3)
    assert bundle.preprocessing.std == pytest.approx([0.3530], abs=2e-3)
    assert bundle.classes[int(bundle.test.labels[0])] == "Ankle boot"
