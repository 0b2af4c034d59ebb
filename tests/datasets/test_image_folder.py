from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgekd.batches import Batches
from edgekd.datasets._base import DataBundle, InMemorySamples, Wanted
from edgekd.datasets._image_files import decoded, looked_at
from edgekd.datasets.image_folder import FileSamples, ImageFolder
from edgekd.errors import DataError

RNG = np.random.default_rng(0)


def write(path: Path, *, size: tuple[int, int] = (8, 10), seed: int | None = None) -> None:
    rng = RNG if seed is None else np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in ("bee", "ant"):
        for i in range(10):
            write(root / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


def load(path: Path, *, wanted: Wanted | None = None, **options: Any) -> DataBundle:
    return ImageFolder(ImageFolder.Options(path=str(path), **options)).load(wanted or Wanted())


def test_classes_are_the_folders_in_order_and_a_fifth_is_tested(folder: Path) -> None:
    bundle = load(folder)
    assert bundle.classes == ("ant", "bee")
    assert [len(one) for one in (bundle.train, bundle.val, bundle.test)] == [14, 2, 4]
    assert bundle.preprocessing.input_shape == (3, 8, 10)
    assert bundle.skipped == ()


def test_each_image_has_the_label_of_its_folder(tmp_path: Path) -> None:
    for level, name in ((10, "dark"), (240, "light")):
        for i in range(5):
            (tmp_path / name / "deeper").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 6), (level, level, level - i)).save(tmp_path / name / "deeper" / f"{i}.PNG")
    bundle = load(tmp_path)
    for samples in (bundle.train, bundle.val, bundle.test):
        bright = samples.images(torch.arange(len(samples))).mean(dim=(1, 2, 3)) > 0.5
        assert torch.equal(bright.to(torch.int64), samples.labels)


def test_folders_of_their_own_are_used_whole(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 4)):
        for name in ("ant", "bee"):
            for i in range(count):
                write(tmp_path / split / name / f"{i}.png")
    bundle = load(tmp_path / "train", val=str(tmp_path / "val"), test=str(tmp_path / "test"))
    assert [len(one) for one in (bundle.train, bundle.val, bundle.test)] == [6, 4, 8]


def test_images_are_the_same_when_decoded_at_every_batch_as_when_held(folder: Path) -> None:
    wanted = Wanted(size=(6, 7))
    held, read = load(folder, wanted=wanted), load(folder, wanted=wanted, cache_mb=0)
    assert isinstance(held.train, InMemorySamples)
    assert isinstance(read.train, FileSamples)
    ids = torch.tensor([5, 0, 9])
    assert torch.equal(held.train.images(ids), read.train.images(ids))
    assert held.fingerprint == read.fingerprint
    assert held.preprocessing == read.preprocessing


def test_grey_is_one_channel_when_asked(folder: Path) -> None:
    assert load(folder, channels=1).train.images(torch.arange(2)).shape == (2, 1, 8, 10)


def test_different_sizes_are_named_unless_a_size_is_asked(folder: Path) -> None:
    write(folder / "bee" / "wide.png", size=(8, 30))
    with pytest.raises(DataError, match=r"different sizes: .* is 8x10, .*wide\.png is 8x30.*data\.size = \[H, W\]"):
        load(folder)
    assert load(folder, wanted=Wanted(size=(5, 5))).preprocessing.size == [5, 5]


@pytest.fixture
def broken(folder: Path) -> Path:
    write(folder / "ant" / "cut.jpg", size=(40, 40))
    whole = (folder / "ant" / "cut.jpg").read_bytes()
    (folder / "ant" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bee" / "text.png").write_text("not an image")
    (folder / "bee" / "void.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_broken_files_are_all_named_with_what_to_do(broken: Path, cache_mb: int) -> None:
    with pytest.raises(DataError) as caught:
        load(broken, cache_mb=cache_mb, wanted=Wanted(size=(8, 8)))
    text = str(caught.value)
    assert "3 of 23 images cannot be read" in text
    assert "data.skip_broken = true" in text
    assert f"{broken / 'ant' / 'cut.jpg'}: image file is truncated" in text
    assert f"{broken / 'bee' / 'text.png'}: not a JPEG or PNG image" in text
    assert f"{broken / 'bee' / 'void.png'}" in text


def test_broken_files_are_left_out_and_reported_when_asked(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        bundle = load(broken, skip_broken=True)
    assert len(bundle.train) + len(bundle.val) + len(bundle.test) == 20
    assert [line.split(":")[0].rpartition("/")[2] for line in bundle.skipped] == ["cut.jpg", "text.png", "void.png"]
    assert "left out: " in caplog.text
    assert "cut.jpg" in caplog.text


def test_damage_inside_a_file_is_found_when_it_is_decoded(folder: Path) -> None:
    # the header and the end are whole: only decoding shows it
    path = folder / "ant" / "1.png"
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 30
    content[start : start + 40] = bytes(40)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"1\.png"):
        load(folder)
    assert [line.split(":")[0].rpartition("/")[2] for line in load(folder, skip_broken=True).skipped] == ["1.png"]


def test_a_file_that_breaks_after_loading_is_named_by_the_batch_that_needs_it(folder: Path) -> None:
    bundle = load(folder, cache_mb=0)
    assert isinstance(bundle.train, FileSamples)
    bundle.train.files[3].unlink()
    made = Batches(bundle.train, batch_size=4, classes=2, preprocessing=bundle.preprocessing, seed=0)
    with pytest.raises(DataError, match=f"{bundle.train.files[3].name}: the file is gone"):
        list(made.epoch(0))


def test_the_fingerprint_changes_when_a_file_or_a_name_does_but_not_when_the_folder_moves(folder: Path) -> None:
    first = load(folder).fingerprint
    moved = folder.rename(folder.parent / "elsewhere")
    assert load(moved).fingerprint == first
    (moved / "ant" / "0.jpg").rename(moved / "ant" / "00.jpg")
    renamed = load(moved).fingerprint
    assert renamed != first
    write(moved / "ant" / "00.jpg", seed=123)
    assert load(moved).fingerprint not in (first, renamed)


def test_files_that_are_not_images_are_told_and_hidden_ones_are_not(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "ant" / "notes.txt").write_text("ants")
    (folder / "ant" / ".thumbs.png").write_text("hidden")
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "1 files are not JPEG or PNG" in caplog.text
    assert "notes.txt" in caplog.text


def test_folders_that_cannot_be_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such folder. Set data\.path"):
        load(tmp_path / "none")
    with pytest.raises(DataError, match="needs one subfolder per class, at least two, found 0"):
        load(tmp_path)
    write(tmp_path / "train" / "ant" / "1.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"folders test, train look like splits, not classes.*data\.path to .*train"):
        load(tmp_path)


def test_empty_and_small_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "bee").mkdir()
    with pytest.raises(DataError, match=r"no \.jpg, \.jpeg, \.png files in its class folders"):
        load(tmp_path)
    for i in range(3):
        write(tmp_path / "ant" / f"{i}.png")
    write(tmp_path / "bee" / "1.png")
    with pytest.raises(DataError, match=r"every class needs at least 3 samples .* but 'bee' has 1"):
        load(tmp_path)


def test_a_test_class_that_training_does_not_have_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("ant", "wasp"):
        write(tmp_path / "test" / name / "1.png")
    with pytest.raises(DataError, match=r"class folder 'wasp' is not among the training classes \(ant, bee\)"):
        load(folder, test=str(tmp_path / "test"))


def test_an_image_is_turned_upright_by_its_orientation(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, :4] = 255  # white on the left
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by 90 degrees clockwise: white on top
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=turned)
    assert looked_at(tmp_path / "phone.png", thoroughly=False).size == (8, 4)
    image = decoded(tmp_path / "phone.png", channels=1, size=(8, 4))
    assert torch.unique(image[0, :4]).tolist() == [255]
    assert torch.unique(image[0, 4:]).tolist() == [0]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.full((2, 2), 0x8040, dtype=np.uint16)), [0x80] * 3),
        (Image.new("L", (2, 2), 77), [77] * 3),
        (Image.new("1", (2, 2), 1), [255] * 3),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), [10, 20, 30]),
        (Image.new("RGB", (2, 2), (10, 20, 30)).convert("P"), None),
    ],
    ids=["16-bit", "grey", "bits", "transparent", "palette"],
)
def test_every_kind_of_png_becomes_rgb(tmp_path: Path, image: Image.Image, expected: list[int] | None) -> None:
    image.save(tmp_path / "a.png")
    got = decoded(tmp_path / "a.png", channels=3, size=(2, 2))[:, 0, 0].tolist()
    assert got == (expected or list(image.convert("RGB").getpixel((0, 0))))  # type: ignore[arg-type]


def test_a_file_with_more_after_its_end_is_readable_when_the_image_is_whole(folder: Path) -> None:
    path = folder / "ant" / "0.jpg"
    path.write_bytes(path.read_bytes() + bytes(10_000))
    assert load(folder).skipped == ()
