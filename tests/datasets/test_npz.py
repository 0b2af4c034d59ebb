from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.batches import Batches
from edgekd.datasets._base import DataBundle, Wanted
from edgekd.datasets.npz import Npz
from edgekd.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def load(path: Path, **options: Any) -> DataBundle:
    return Npz(Npz.Options(path=str(path), **options)).load(Wanted())


def test_a_fifth_of_each_class_is_the_test_split_when_the_file_has_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    bundle = load(tmp_path / "a.npz")
    assert np.bincount(bundle.test.labels).tolist() == [2, 2, 2]
    assert np.bincount(load(tmp_path / "a.npz", test_fraction=0.5).test.labels).tolist() == [5, 5, 5]


def test_the_test_arrays_are_the_test_split_when_the_file_has_them(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "a.npz", images=IMAGES, labels=LABELS, test_images=IMAGES[:4] // 2, test_labels=LABELS[:4]
    )
    bundle = load(tmp_path / "a.npz")
    assert len(bundle.train) + len(bundle.val) == 30
    got = bundle.test.images(torch.arange(4)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got, (IMAGES[:4] // 2) / 255, rtol=1e-6)


def test_images_without_label_are_for_training_only(tmp_path: Path) -> None:
    labels = np.where(np.arange(30) % 5 == 4, -1, LABELS)
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels)
    bundle = load(tmp_path / "a.npz")
    assert bundle.classes == ("0", "1", "2")
    assert int((bundle.train.labels == -1).sum()) == 6
    assert min(int(part.labels.min()) for part in (bundle.val, bundle.test)) == 0
    assert len(bundle.train) + len(bundle.val) + len(bundle.test) == 30
    batches = Batches(bundle.train, batch_size=30, classes=3, preprocessing=bundle.preprocessing, seed=0)
    assert int((next(iter(batches.epoch(0))).labels.sum(dim=1) == 0).sum()) == 6


def test_test_images_need_labels(tmp_path: Path) -> None:
    arrays = {"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:4], "test_labels": np.array([0, 1, -1, 2])}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=r"\(test_images\): label -1 of sample 2 is negative"):
        load(tmp_path / "a.npz")


def test_names_of_arrays_and_classes_can_be_chosen(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=IMAGES.transpose(0, 3, 1, 2), y=LABELS)
    bundle = load(tmp_path / "a.npz", images="x", labels="y", classes=["ant", "bee", "cat"], layout="NCHW")
    assert bundle.classes == ("ant", "bee", "cat")
    assert bundle.preprocessing.size == [6, 5]


def test_the_fingerprint_changes_when_one_pixel_does(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    changed = IMAGES.copy()
    changed[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "b.npz", images=changed, labels=LABELS)
    np.savez(tmp_path / "c.npz", images=IMAGES, labels=LABELS)
    first = load(tmp_path / "a.npz").fingerprint
    assert load(tmp_path / "b.npz").fingerprint != first
    assert load(tmp_path / "c.npz").fingerprint == first


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: no such file"):
        load(tmp_path / "none.npz")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "a.npz", images=np.array([Trap()], dtype=object), labels=LABELS)
    with pytest.raises(DataError, match=r"a\.npz: not an \.npz file of plain arrays.*Pickled objects are never loaded"):
        load(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_a_file_that_is_not_an_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: not an \.npz file of plain arrays, or a damaged one"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_refused_wherever_the_damage_is(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "a.npz"
    save(path, images=IMAGES, labels=LABELS)
    whole = path.read_bytes()
    for cut in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.npz"):
            load(path)
        middle = bytearray(whole)
        middle[cut] ^= 0xFF
        path.write_bytes(bytes(middle))
        # a changed byte may be one that nothing depends on; what it must not be is another kind of error
        with contextlib.suppress(DataError):
            load(path)


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match="holds a single array"):
        load(tmp_path / "a.npz")


def test_a_missing_array_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=IMAGES, labels=LABELS)
    with pytest.raises(DataError, match=r"has no array 'images'\. Did you mean 'image'\?"):
        load(tmp_path / "a.npz")


def test_half_a_test_split_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS, test_images=IMAGES)
    with pytest.raises(DataError, match="has 'test_images' but not 'test_labels'"):
        load(tmp_path / "a.npz")


def test_test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS, test_images=IMAGES[:, :4], test_labels=LABELS)
    with pytest.raises(DataError, match=r"training images have the shape \(3, 6, 5\).*test images \(3, 4, 5\)"):
        load(tmp_path / "a.npz")


def test_a_class_that_is_too_small_to_split_is_refused(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[labels == 2] = 1
    labels[5] = 3
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels)
    with pytest.raises(DataError, match=r"every class needs at least 3 samples .* but '2' has 0, '3' has 1"):
        load(tmp_path / "a.npz")


def test_a_constant_channel_is_refused_unless_its_std_is_given(tmp_path: Path) -> None:
    images = IMAGES.copy()
    images[..., 1] = 7
    np.savez(tmp_path / "a.npz", images=images, labels=LABELS)
    with pytest.raises(DataError, match=r"channel 1 has the same value in every training image.*data\.std"):
        load(tmp_path / "a.npz")
    given = Npz(Npz.Options(path=str(tmp_path / "a.npz"))).load(Wanted(std=(1.0, 1.0, 1.0)))
    assert given.preprocessing.std == [1.0, 1.0, 1.0]
