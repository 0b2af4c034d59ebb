"""What every data set must do, found by discovery: a new member is tested as soon as its file is there."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgekd.batches import Batches
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import DataBundle, Wanted
from edgekd.errors import DataError, UsageError
from edgekd.recipe import DataSettings

CATALOG = CATALOGS["datasets"]
NAMES = CATALOG.names()


def _no_files(folder: Path) -> dict[str, Any]:
    return {}


def _idx_files(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for stem, count in (("train", 200), ("t10k", 40)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = bytes((0, 0, 8, 3)) + struct.pack(">3I", *images.shape)
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        header = bytes((0, 0, 8, 1)) + struct.pack(">I", count)
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return {"path": "."}


def _class_folders(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    return {"path": "images"}


def _arrays(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = rng.random((90, 12, 10, 2))
    np.savez(folder / "mine.npz", images=images, labels=np.arange(90) % 3)
    return {"path": "mine.npz"}


# how to make a small one of each; a member that needs files and is not here fails its first test
INPUTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "fashion_mnist": _idx_files,
    "image_folder": _class_folders,
    "npz": _arrays,
}


@pytest.fixture(params=NAMES)
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., DataBundle]:
    options = INPUTS.get(request.param, _no_files)(tmp_path)
    member = CATALOG.load(request.param).member

    def loaded(**wanted: Any) -> DataBundle:
        dataset = member(member.Options(**options))
        bundle: DataBundle = dataset.load(replace(Wanted(base_folder=tmp_path), **wanted))
        return bundle

    return loaded


def _splits(bundle: DataBundle) -> dict[str, Any]:
    return {"train": bundle.train, "val": bundle.val, "test": bundle.test}


def _all_images(samples: Any) -> torch.Tensor:
    images: torch.Tensor = samples.images(torch.arange(len(samples)))
    return images


def test_all_members_are_found() -> None:
    assert len(NAMES) >= 5
    assert {"digits", "fashion_mnist", "image_folder", "npz", "synthetic"} <= set(NAMES)
    assert all(CATALOG.summary(name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_options_do_not_hide_behind_the_keys_every_data_set_has(name: str) -> None:
    # such an option could never be set in a recipe: the key would go to DataSettings
    assert not set(CATALOG.options(name).model_fields) & set(DataSettings.model_fields)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described(name: str) -> None:
    assert all(field.description for field in CATALOG.options(name).model_fields.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_is_refused_when_the_member_takes_none(name: str) -> None:
    member = CATALOG.load(name).member
    if not member.takes_argument:
        with pytest.raises(UsageError, match=f"'{name}' takes nothing after a colon"):
            member(member.Options.model_construct(), "something")


def test_images_and_labels_are_as_the_contract_says(load: Callable[..., DataBundle]) -> None:
    bundle = load()
    for samples in _splits(bundle).values():
        images = _all_images(samples)
        assert images.dtype == torch.float32
        assert tuple(images.shape) == (len(samples), *bundle.preprocessing.input_shape)
        assert float(images.min()) >= 0.0
        assert float(images.max()) <= 1.0
        assert samples.labels.dtype == torch.int64
        assert len(samples.labels) == len(samples) > 0
        assert int(samples.labels.min()) >= 0
        assert int(samples.labels.max()) < len(bundle.classes)


def test_images_follow_the_order_of_the_indices(load: Callable[..., DataBundle]) -> None:
    train = load().train
    both = train.images(torch.tensor([3, 0]))
    assert torch.equal(both[0], train.images(torch.tensor([3]))[0])
    assert torch.equal(both[1], train.images(torch.tensor([0]))[0])


def test_the_same_bundle_comes_when_loaded_twice(load: Callable[..., DataBundle]) -> None:
    first, second = load(), load()
    assert first.fingerprint == second.fingerprint
    assert first.preprocessing == second.preprocessing
    for one, other in zip(_splits(first).values(), _splits(second).values(), strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(_all_images(one), _all_images(other))


def test_no_image_is_in_two_splits_when_the_content_has_no_duplicates(load: Callable[..., DataBundle]) -> None:
    rows = {name: {image.numpy().tobytes() for image in _all_images(part)} for name, part in _splits(load()).items()}
    # digits and the random images here are all different, which the sizes show
    assert all(rows.values())
    assert not rows["train"] & rows["val"]
    assert not rows["train"] & rows["test"]
    assert not rows["val"] & rows["test"]


def test_the_test_split_stays_when_the_seed_and_the_training_options_change(load: Callable[..., DataBundle]) -> None:
    first, other = load(seed=0), load(seed=7, val_fraction=0.3, limit_train=15)
    assert torch.equal(_all_images(first.test), _all_images(other.test))
    assert torch.equal(first.test.labels, other.test.labels)


def test_validation_and_fingerprint_change_when_the_seed_does(load: Callable[..., DataBundle]) -> None:
    first, other = load(seed=0), load(seed=7)
    assert len(first.val) == len(other.val)
    assert not torch.equal(_all_images(first.val), _all_images(other.val))
    assert first.fingerprint != other.fingerprint


def test_every_class_is_in_training_and_validation(load: Callable[..., DataBundle]) -> None:
    bundle = load(val_fraction=0.1)
    everything = set(range(len(bundle.classes)))
    assert set(bundle.train.labels.tolist()) == everything
    assert set(bundle.val.labels.tolist()) == everything


def test_mean_and_std_are_those_of_the_training_split_alone(load: Callable[..., DataBundle]) -> None:
    bundle = load(limit_train=20)
    images = _all_images(bundle.train).to(torch.float64)
    # 1e-6: values are stored with six digits
    mean, std = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3), correction=0)
    assert bundle.preprocessing.mean == pytest.approx(mean.tolist(), abs=1e-6)
    assert bundle.preprocessing.std == pytest.approx(std.tolist(), abs=1e-6)
    everything = torch.cat([_all_images(part) for part in _splits(bundle).values()]).to(torch.float64)
    assert bundle.preprocessing.mean != pytest.approx(everything.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)


def test_overrides_are_taken(load: Callable[..., DataBundle]) -> None:
    channels = load().preprocessing.channels
    mean, std = tuple([0.25] * channels), tuple([0.5] * channels)
    bundle = load(size=(6, 9), mean=mean, std=std)
    assert bundle.preprocessing.size == [6, 9]
    assert tuple(bundle.preprocessing.mean) == mean
    assert tuple(bundle.preprocessing.std) == std
    for samples in _splits(bundle).values():
        assert samples.images(torch.arange(2)).shape == (2, channels, 6, 9)
    assert bundle.fingerprint != load().fingerprint


def test_an_override_is_refused_when_it_has_another_number_of_channels(load: Callable[..., DataBundle]) -> None:
    with pytest.raises(DataError, match=r"data\.mean has 5 values but the images have \d channels"):
        load(mean=(0.5,) * 5)
    with pytest.raises(DataError, match=r"data\.std must be > 0"):
        load(std=(0.0,) * load().preprocessing.channels)
    with pytest.raises(DataError, match="must be finite"):
        load(mean=(float("nan"),) * load().preprocessing.channels)


def test_training_is_limited_in_proportion_and_a_limit_below_the_classes_is_refused(
    load: Callable[..., DataBundle],
) -> None:
    bundle = load(limit_train=20)
    assert len(bundle.train) == 20
    assert len(bundle.val) == len(load().val)
    assert set(bundle.train.labels.tolist()) == set(range(len(bundle.classes)))
    with pytest.raises(DataError, match=r"1 samples cannot hold \d+ classes.*data\.limit_train"):
        load(limit_train=1)


def test_batches_can_be_made_of_it(load: Callable[..., DataBundle]) -> None:
    bundle = load()
    made = Batches(bundle.train, batch_size=8, classes=len(bundle.classes), preprocessing=bundle.preprocessing, seed=0)
    ids = torch.cat([one.ids for one in made.epoch(0)])
    assert len(torch.unique(ids)) == len(ids) >= len(bundle.train) - 1
