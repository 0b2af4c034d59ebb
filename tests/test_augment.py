from __future__ import annotations

import hashlib

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from edgekd.augment import Augment, uniforms
from edgekd.errors import UsageError
from edgekd.recipe import AugmentSettings

ALL = AugmentSettings(crop=2, flip=True, cutout=3, mixup=0.4)


def batch(count: int, *, side: int = 8, channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, channels, side, side, generator=generator)
    labels = torch.eye(5)[torch.arange(count) % 5]
    return images, labels, torch.arange(count) * 7 + 3


def splitmix64(state: int) -> int:
    """The finaliser on Python's unbounded integers."""
    mask = (1 << 64) - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_uniforms_equal_integer_arithmetic_when_computed_one_by_one() -> None:
    key = int.from_bytes(hashlib.sha256(b"11 4 flip").digest()[:8], "little")
    ids = [0, 1, 59_999, 2**40]
    expected = [(splitmix64((key + i * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for i in ids]
    assert uniforms(torch.tensor(ids), seed=11, epoch=4, stream="flip").tolist() == expected


def test_splitmix_finaliser_gives_the_published_first_output_when_the_seed_is_0() -> None:
    # the reference C code's first value for seed 0, which advances the state by the golden ratio first
    assert splitmix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_uniforms_look_uniform_and_independent_when_only_one_argument_changes() -> None:
    ids = torch.arange(20_000)
    base = uniforms(ids, seed=0, epoch=0, stream="flip")
    assert float(base.min()) >= 0.0
    assert float(base.max()) < 1.0
    # the seed is fixed, so these are facts, not chances; 4 standard errors of a correlation of 20,000 pairs is 0.028
    assert kstest(base.numpy(), "uniform").pvalue > 0.01
    others = [
        uniforms(ids, seed=1, epoch=0, stream="flip"),
        uniforms(ids, seed=0, epoch=1, stream="flip"),
        uniforms(ids, seed=0, epoch=0, stream="crop"),
        base.roll(1),
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([base, other]))[0, 1])) < 0.028


def test_images_are_unchanged_when_everything_is_off() -> None:
    images, labels, ids = batch(4)
    out, mixed = Augment(AugmentSettings(), 0)(images, labels, ids, epoch=0, fill=(0.5,) * 3)
    assert torch.equal(out, images)
    assert torch.equal(mixed, labels)


def test_arguments_are_not_mutated_when_everything_is_on() -> None:
    images, labels, ids = batch(6)
    before = images.clone(), labels.clone(), ids.clone()
    Augment(ALL, 0)(images, labels, ids, epoch=0, fill=(0.5,) * 3)
    assert all(torch.equal(a, b) for a, b in zip(before, (images, labels, ids), strict=True))


def test_crop_and_flip_equal_padding_and_slicing_when_done_one_image_at_a_time() -> None:
    images, labels, ids = batch(32)
    pad, side = 2, 8
    got, _ = Augment(AugmentSettings(crop=pad, flip=True), 5)(images, labels, ids, epoch=3, fill=(0.0,) * 3)
    draws = {name: uniforms(ids, seed=5, epoch=3, stream=name) for name in ("crop down", "crop right", "flip")}
    flipped = 0
    for i in range(32):
        padded = torch.nn.functional.pad(images[i], (pad,) * 4, mode="reflect")
        top = int(draws["crop down"][i] * (2 * pad + 1))
        left = int(draws["crop right"][i] * (2 * pad + 1))
        mirror = bool(draws["flip"][i] < 0.5)
        flipped += mirror
        window = padded[:, top : top + side, left : left + side]
        assert torch.equal(got[i], window.flip(-1) if mirror else window)
    assert 8 < flipped < 24


def test_each_offset_of_the_crop_happens_when_there_are_many_samples() -> None:
    image = torch.arange(49.0).reshape(1, 1, 7, 7).expand(500, 1, 7, 7)
    got, _ = Augment(AugmentSettings(crop=1), 0)(image, torch.ones(500, 1), torch.arange(500), epoch=0, fill=(0.0,))
    centres = torch.unique(got[:, 0, 3, 3]).tolist()
    assert centres == [16.0, 17.0, 18.0, 23.0, 24.0, 25.0, 30.0, 31.0, 32.0]


def test_flip_twice_is_the_original_when_the_draws_are_the_same() -> None:
    images, labels, ids = batch(64)
    augment = Augment(AugmentSettings(flip=True), 9)
    once, _ = augment(images, labels, ids, epoch=2, fill=(0.0,) * 3)
    twice, _ = augment(once, labels, ids, epoch=2, fill=(0.0,) * 3)
    assert torch.equal(twice, images)
    assert not torch.equal(once, images)


def test_cutout_fills_one_square_with_the_mean_of_each_channel() -> None:
    images = torch.zeros(300, 2, 9, 9)
    got, _ = Augment(AugmentSettings(cutout=3), 0)(images, torch.ones(300, 1), torch.arange(300), epoch=0, fill=(2, 3))
    cut = got[:, 0] == 2
    assert torch.equal(cut, got[:, 1] == 3)
    areas = cut.flatten(1).sum(1)
    # a centre in a corner leaves 2 x 2 of the 3 x 3 inside, at an edge 2 x 3
    assert sorted(torch.unique(areas).tolist()) == [4, 6, 9]
    heights, widths = cut.any(2).sum(1), cut.any(1).sum(1)
    assert torch.equal(heights * widths, areas)


def test_cutout_of_the_whole_image_is_allowed_when_the_square_is_huge() -> None:
    got, _ = Augment(AugmentSettings(cutout=50), 0)(
        torch.zeros(4, 1, 9, 9), torch.ones(4, 1), torch.arange(4), epoch=0, fill=(1.0,)
    )
    assert torch.equal(got, torch.ones(4, 1, 9, 9))


def test_mixup_mixes_images_and_labels_by_the_same_ratio() -> None:
    count = 40
    images = torch.eye(count).reshape(count, 1, 5, 8)  # each image marks its own sample, so the ratio can be read
    labels = torch.eye(count)
    got, mixed = Augment(AugmentSettings(mixup=1.0), 0)(images, labels, torch.arange(count), epoch=0, fill=(0.0,))
    torch.testing.assert_close(got.flatten(1), mixed, atol=0, rtol=0)
    # 1e-6: two float32 roundings of numbers below 1
    torch.testing.assert_close(mixed.sum(1), torch.ones(count), atol=1e-6, rtol=0)
    assert bool(((mixed > 0).sum(1) == 2).all())  # itself and one partner, never itself twice
    assert bool(((mixed > 0).sum(0) == 2).all())  # each is the partner of exactly one


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_ratio_follows_the_beta_distribution(alpha: float) -> None:
    count = 2000
    images = torch.eye(2).repeat(count // 2, 1).reshape(count, 1, 1, 2).to(torch.float64)
    labels = torch.eye(count, dtype=torch.float64)
    _, mixed = Augment(AugmentSettings(mixup=alpha), 0)(images, labels, torch.arange(count), epoch=0, fill=(0.0,))
    # the seed is fixed: a wrong distribution fails, chance does not come in
    assert kstest(mixed.diagonal().numpy(), "beta", args=(alpha, alpha)).pvalue > 0.01


def test_mixup_keeps_a_sample_when_it_is_alone_in_its_batch() -> None:
    images, labels, ids = batch(1)
    got, mixed = Augment(AugmentSettings(mixup=1.0), 0)(images, labels, ids, epoch=0, fill=(0.0,) * 3)
    torch.testing.assert_close(got, images)
    torch.testing.assert_close(mixed, labels)


def test_a_sample_is_changed_in_the_same_way_when_the_batch_has_another_order() -> None:
    images, labels, ids = batch(16)
    augment = Augment(ALL, 3)
    straight = augment(images, labels, ids, epoch=1, fill=(0.5,) * 3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = augment(images[order], labels[order], ids[order], epoch=1, fill=(0.5,) * 3)
    assert torch.equal(straight[0][order], shuffled[0])
    assert torch.equal(straight[1][order], shuffled[1])


def test_a_sample_is_changed_in_the_same_way_when_its_batch_is_split() -> None:
    images, labels, ids = batch(16)
    augment = Augment(AugmentSettings(crop=2, flip=True, cutout=3), 3)
    whole, _ = augment(images, labels, ids, epoch=1, fill=(0.5,) * 3)
    halves = [
        augment(images[i], labels[i], ids[i], epoch=1, fill=(0.5,) * 3)[0] for i in torch.split(torch.arange(16), 5)
    ]
    assert torch.equal(whole, torch.cat(halves))


@pytest.mark.parametrize("other", [(4, 1), (3, 2)], ids=["seed", "epoch"])
def test_changes_differ_when_seed_or_epoch_does(other: tuple[int, int]) -> None:
    images, labels, ids = batch(16)
    first, _ = Augment(ALL, 3)(images, labels, ids, epoch=1, fill=(0.5,) * 3)
    second, _ = Augment(ALL, other[0])(images, labels, ids, epoch=other[1], fill=(0.5,) * 3)
    assert not torch.equal(first, second)


def test_crop_is_refused_when_it_pads_by_the_side_of_the_image() -> None:
    images, labels, ids = batch(2, side=4)
    with pytest.raises(UsageError, match=r"crop must be less than the image's side \(4x4 pixels\), got 4"):
        Augment(AugmentSettings(crop=4), 0)(images, labels, ids, epoch=0, fill=(0.5,) * 3)


def test_crop_handles_images_that_are_not_square() -> None:
    images = torch.rand(8, 1, 5, 9, generator=torch.Generator().manual_seed(0))
    got, _ = Augment(AugmentSettings(crop=4, flip=True), 0)(
        images, torch.ones(8, 1), torch.arange(8), epoch=0, fill=(0.0,)
    )
    assert got.shape == images.shape
    # every pixel comes from its own image
    assert all(set(got[i].flatten().tolist()) <= set(images[i].flatten().tolist()) for i in range(8))


def test_seed_of_a_view_tells_epoch_sample_and_seed_apart() -> None:
    ids = torch.arange(2000)
    first = Augment(AugmentSettings(), seed=1).seeds(ids, epoch=0)
    assert first.dtype == torch.int32
    assert torch.equal(first, Augment(AugmentSettings(flip=True), seed=1).seeds(ids, epoch=0))
    assert torch.equal(first[[5, 3]], Augment(AugmentSettings(), seed=1).seeds(torch.tensor([5, 3]), epoch=0))
    assert len(first.unique()) > 1990  # of 2^32 numbers, 2000 are hardly ever two alike
    for other in (Augment(AugmentSettings(), seed=2).seeds(ids, epoch=0),
                  Augment(AugmentSettings(), seed=1).seeds(ids, epoch=1),
                  Augment(AugmentSettings(), seed=1, view=1).seeds(ids, epoch=0)):  # fmt: skip
        assert int((first == other).sum()) < 3
