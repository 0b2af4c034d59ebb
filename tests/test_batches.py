from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from edgekd.batches import Batches, Sampling, Share, calibration_ids, evaluation_batches
from edgekd.datasets._base import InMemorySamples, Samples
from edgekd.errors import DataError, UsageError
from edgekd.methods import _base
from edgekd.recipe import AugmentSettings
from edgekd.spec import Preprocessing

PLAIN = Preprocessing(size=[4, 4], channels=1, mean=[0.0], std=[1.0])
SCALED = Preprocessing(size=[4, 4], channels=1, mean=[0.5], std=[0.25])
ALL = AugmentSettings(crop=1, flip=True, cutout=2, mixup=0.5)


def numbered(count: int) -> InMemorySamples:
    """Image i has the value i / 255 everywhere; labels go round three classes."""
    pixels = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(count, 1, 4, 4).contiguous()
    return InMemorySamples(pixels, torch.arange(count) % 3)


@dataclass(frozen=True)
class FromElsewhere:
    """Samples that are not in memory; they tell which thread read them, and one of them can be broken."""

    inner: InMemorySamples
    broken: int = -1
    threads: set[str] = field(default_factory=set)
    read: list[int] = field(default_factory=list)

    @property
    def labels(self) -> Tensor:
        return self.inner.labels

    def __len__(self) -> int:
        return len(self.inner)

    def images(self, indices: Tensor) -> Tensor:
        self.threads.add(threading.current_thread().name)
        self.read.extend(indices.tolist())
        if self.broken in indices.tolist():
            raise DataError("cat.jpg: truncated")
        return self.inner.images(indices)


def batches(
    samples: Samples,
    *,
    batch_size: int = 4,
    seed: int = 0,
    shuffle: bool = True,
    augment: AugmentSettings | None = None,
    label_smoothing: float = 0.0,
    drop_last: bool = False,
    prefetch: int | None = None,
    preprocessing: Preprocessing = PLAIN,
    sampling: Sampling = "plain",
) -> Batches:
    return Batches(
        samples,
        batch_size=batch_size,
        classes=3,
        preprocessing=preprocessing,
        sampling=sampling,
        seed=seed,
        shuffle=shuffle,
        augment=augment,
        label_smoothing=label_smoothing,
        drop_last=drop_last,
        prefetch=prefetch,
    )


def test_every_sample_comes_once_with_its_own_image_and_label_when_shuffled() -> None:
    made = batches(numbered(10))
    found = list(made.epoch(0))
    assert [len(one.ids) for one in found] == [4, 4, 2]
    assert len(made) == 3
    ids = torch.cat([one.ids for one in found])
    assert sorted(ids.tolist()) == list(range(10))
    assert ids.tolist() != list(range(10))
    for one in found:
        torch.testing.assert_close(one.inputs[:, 0, 0, 0] * 255, one.ids.to(torch.float32))
        assert one.labels.argmax(1).tolist() == (one.ids % 3).tolist()


def test_order_is_the_same_when_made_again_and_differs_between_epochs_and_seeds() -> None:
    first, again, other = batches(numbered(50)), batches(numbered(50)), batches(numbered(50), seed=1)
    assert torch.equal(first.order(3), again.order(3))
    assert not torch.equal(first.order(3), first.order(4))
    assert not torch.equal(first.order(3), other.order(3))


def test_an_epoch_does_not_depend_on_the_epochs_before_it() -> None:
    made = batches(numbered(20), augment=ALL)
    for epoch in range(2):
        list(made.epoch(epoch))
    later = list(made.epoch(2))
    fresh = list(batches(numbered(20), augment=ALL).epoch(2))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(later, fresh, strict=True))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(later, fresh, strict=True))


def test_order_is_the_splits_own_when_not_shuffled() -> None:
    found = list(batches(numbered(9), shuffle=False).epoch(5))
    assert torch.cat([one.ids for one in found]).tolist() == list(range(9))


def test_a_lone_last_sample_is_left_out_when_shuffled() -> None:
    made = batches(numbered(9))
    assert len(made) == 2
    assert [len(one.ids) for one in made.epoch(0)] == [4, 4]
    left_out = {(set(range(9)) - set(made.order(epoch)[:8].tolist())).pop() for epoch in range(20)}
    assert len(left_out) > 4


def test_a_lone_sample_is_kept_when_it_is_all_there_is() -> None:
    assert [len(one.ids) for one in batches(numbered(1)).epoch(0)] == [1]
    assert [len(one.ids) for one in batches(numbered(3), batch_size=1).epoch(0)] == [1, 1, 1]


def test_the_last_batch_is_left_out_when_not_full_and_asked_to_drop() -> None:
    made = batches(numbered(11), drop_last=True)
    assert [len(one.ids) for one in made.epoch(0)] == [4, 4]
    with pytest.raises(UsageError, match="3 training samples do not fill one batch of 4"):
        batches(numbered(3), drop_last=True)


def test_inputs_are_normalised_by_mean_and_std() -> None:
    found = next(batches(numbered(4), shuffle=False, preprocessing=SCALED).epoch(0))
    # (3/255 - 0.5) / 0.25
    assert found.inputs[3, 0, 0, 0].item() == pytest.approx(-1.952941, abs=1e-6)


def test_cut_out_pixels_are_zero_after_normalisation() -> None:
    found = next(batches(numbered(4), augment=AugmentSettings(cutout=20), preprocessing=SCALED, shuffle=False).epoch(0))
    assert torch.equal(found.inputs, torch.zeros_like(found.inputs))


def test_labels_are_smoothed_by_the_share_asked() -> None:
    found = next(batches(numbered(4), shuffle=False, label_smoothing=0.3).epoch(0))
    # 0.3 spread over 3 classes: 0.1 each, and 0.7 more for the true one
    torch.testing.assert_close(found.labels[1], torch.tensor([0.1, 0.8, 0.1]))


def test_labels_stay_probabilities_when_smoothed_and_mixed() -> None:
    for one in batches(numbered(20), augment=ALL, label_smoothing=0.1).epoch(0):
        # 1e-6: float32 rounding of four terms below 1
        torch.testing.assert_close(one.labels.sum(1), torch.ones(len(one.ids)), atol=1e-6, rtol=0)
        assert float(one.labels.min()) >= 0


@pytest.mark.parametrize("ahead", [1, 3, 50])
def test_batches_are_the_same_when_prepared_ahead(ahead: int) -> None:
    plain = list(batches(numbered(30), augment=ALL, prefetch=0).epoch(1))
    early = list(batches(numbered(30), augment=ALL, prefetch=ahead).epoch(1))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(plain, early, strict=True))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(plain, early, strict=True))


def test_a_thread_reads_samples_that_are_not_in_memory_and_only_those() -> None:
    elsewhere = FromElsewhere(numbered(12))
    list(batches(elsewhere).epoch(0))
    assert all(name.startswith("edgekd-batches") for name in elsewhere.threads)
    direct = FromElsewhere(numbered(12))
    list(batches(direct, prefetch=0).epoch(0))
    assert direct.threads == {threading.current_thread().name}
    assert batches(numbered(12)).prefetch == 0


def test_an_error_of_the_thread_arrives_after_the_batches_before_it() -> None:
    elsewhere = FromElsewhere(numbered(12), broken=9)
    stream = batches(elsewhere, shuffle=False, prefetch=2).epoch(0)
    assert next(stream).ids.tolist() == [0, 1, 2, 3]
    assert next(stream).ids.tolist() == [4, 5, 6, 7]
    with pytest.raises(DataError, match=r"cat\.jpg: truncated"):
        next(stream)


def test_the_thread_ends_when_the_consumer_stops_early() -> None:
    elsewhere = FromElsewhere(numbered(200))
    stream = batches(elsewhere, shuffle=False, prefetch=2).epoch(0)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert not [one for one in threading.enumerate() if one.name.startswith("edgekd-batches")]
    assert len(elsewhere.read) <= 3 * 4


def test_samples_with_impossible_labels_are_refused() -> None:
    wrong = InMemorySamples(torch.zeros(2, 1, 4, 4), torch.tensor([0, 3]))
    with pytest.raises(DataError, match=r"labels must be in \[0, 2\] for 3 classes, or -1 .* got 0 to 3"):
        batches(wrong)
    with pytest.raises(DataError, match="no samples"):
        batches(InMemorySamples(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)))


def test_evaluation_gives_every_sample_in_order_with_class_labels() -> None:
    found = list(evaluation_batches(numbered(10), SCALED, batch_size=4))
    assert [len(one.ids) for one in found] == [4, 4, 2]
    assert torch.cat([one.ids for one in found]).tolist() == list(range(10))
    inputs, labels, ids = found[1]
    assert labels.tolist() == (ids % 3).tolist()
    assert labels.dtype == torch.int64
    torch.testing.assert_close(inputs[:, 0, 0, 0], (ids / 255 - 0.5) / 0.25)


def test_evaluation_gives_only_the_samples_asked_for_in_their_order() -> None:
    found = list(evaluation_batches(numbered(10), PLAIN, batch_size=2, ids=torch.tensor([7, 2, 5])))
    assert [one.ids.tolist() for one in found] == [[7, 2], [5]]


def test_calibration_samples_are_distinct_and_grow_by_appending() -> None:
    samples = numbered(100)
    few, more = calibration_ids(samples, 10, seed=0), calibration_ids(samples, 60, seed=0)
    assert torch.equal(few, more[:10])
    assert len(set(more.tolist())) == 60
    assert not torch.equal(few, calibration_ids(samples, 10, seed=1))
    assert sorted(calibration_ids(samples, 1000, seed=0).tolist()) == list(range(100))


# how batches are put together

HALVED: tuple[Sampling, ...] = ("repeat_half", "same_class", "two_views")
PLAIN_IDS, PLAIN_SUMS = [[1, 2, 9, 5], [4, 3, 0, 6], [8, 7]], [30.3298, 28.3982, 18.3383]
MOVED = AugmentSettings(crop=1, flip=True, cutout=2)


def shaded(count: int, classes: int = 3) -> InMemorySamples:
    """Every pixel of every image has a value of its own, so that each change of it shows."""
    pixels = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return InMemorySamples(pixels, torch.arange(count) % classes)


def test_ways_are_those_that_methods_ask_for() -> None:
    assert get_args(Sampling) == get_args(_base.Sampling) == ("plain", *HALVED)


@pytest.mark.parametrize("sampling", HALVED)
@pytest.mark.parametrize("count", [5, 8, 11, 12])
def test_every_sample_comes_and_batches_keep_their_size_however_they_are_put_together(
    sampling: Sampling, count: int
) -> None:
    made = batches(numbered(count), sampling=sampling)
    found = list(made.epoch(1))
    assert len(found) == len(made)
    assert [len(one.ids) for one in found[:-1]] == [4] * (len(made) - 1)
    assert 2 <= len(found[-1].ids) <= 4
    first = torch.cat([one.ids[: len(one.ids) // 2] for one in found])
    seen = {int(index) for one in found for index in one.ids}
    if sampling == "repeat_half":
        assert seen == set(range(count))
    else:  # a lone sample is left out, as in plain batches
        assert len(set(first.tolist())) == len(first) == count - count % 2
    for one in found:
        torch.testing.assert_close(one.inputs[:, 0, 0, 0] * 255, one.ids.to(torch.float32))
        assert one.labels.argmax(1).tolist() == (one.ids % 3).tolist()


@pytest.mark.parametrize("sampling", HALVED)
def test_halved_batches_depend_on_seed_and_epoch_alone(sampling: Sampling) -> None:
    made = batches(shaded(20), augment=ALL, sampling=sampling)
    list(made.epoch(0))
    later, fresh = made.epoch(1), batches(shaded(20), augment=ALL, sampling=sampling, prefetch=2).epoch(1)
    for a, b in zip(later, fresh, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.labels, b.labels)
    other = batches(shaded(20), augment=ALL, sampling=sampling, seed=1)
    assert not torch.equal(next(made.epoch(1)).ids, next(other.epoch(1)).ids)


def test_plain_batches_are_what_they_always_were() -> None:
    found = list(batches(shaded(10), augment=ALL).epoch(3))
    # noted before batches could be put together in other ways
    assert [one.ids.tolist() for one in found] == PLAIN_IDS
    assert [round(one.inputs.double().sum().item(), 4) for one in found] == PLAIN_SUMS


def test_first_half_of_a_batch_is_the_second_half_of_the_batch_before_unchanged() -> None:
    made = batches(shaded(11), augment=ALL, sampling="repeat_half")
    found = list(made.epoch(2))
    assert [len(one.ids) for one in found] == [4, 4, 4, 4, 3]
    assert torch.equal(torch.cat([found[0].ids, *(one.ids[2:] for one in found[1:])]), made.order(2))
    for before, after in pairwise(found):
        half = len(before.ids) - 2
        assert torch.equal(before.ids[2:], after.ids[:half])
        assert torch.equal(before.inputs[2:], after.inputs[:half])  # mixup's partners too
        assert torch.equal(before.labels[2:], after.labels[:half])


def test_samples_for_half_a_batch_are_one_batch_when_halves_repeat() -> None:
    assert [len(one.ids) for one in batches(numbered(2), sampling="repeat_half").epoch(0)] == [2]
    with pytest.raises(UsageError, match="2 training samples do not fill one batch of 4"):
        batches(numbered(2), sampling="repeat_half", drop_last=True)


def test_partners_are_others_of_the_same_class_and_change_with_the_epoch() -> None:
    made = batches(numbered(30), batch_size=8, sampling="same_class")
    partners = []
    for epoch in range(40):
        partner = torch.empty(30, dtype=torch.int64)
        for one in made.epoch(epoch):
            half = len(one.ids) // 2
            assert torch.equal(one.labels[:half], one.labels[half:])
            assert bool((one.ids[:half] != one.ids[half:]).all())
            partner[one.ids[:half]] = one.ids[half:]
        partners.append(partner)
    # 40 draws from 9 others: one of them stays out with a probability of 9 (8/9)^40 < 0.1; every sample is looked at
    met = [len({int(partner[index]) for partner in partners}) for index in range(30)]
    assert min(met) >= 7
    assert max(met) == 9


def test_the_only_sample_of_a_class_is_its_own_partner() -> None:
    samples = InMemorySamples(numbered(3).pixels, torch.tensor([0, 1, 1]))
    for one in batches(samples, shuffle=False, sampling="same_class").epoch(0):
        half = len(one.ids) // 2
        pairs = dict(zip(one.ids[:half].tolist(), one.ids[half:].tolist(), strict=True))
        assert {0: 0, 1: 2, 2: 1, **pairs} == {0: 0, 1: 2, 2: 1}


def test_partners_keep_one_label_when_they_are_mixed() -> None:
    mixed = AugmentSettings(mixup=1.0)
    for one in batches(shaded(24), batch_size=8, augment=mixed, sampling="same_class", label_smoothing=0.1).epoch(0):
        half = len(one.ids) // 2
        assert torch.equal(one.labels[:half], one.labels[half:])
        assert not torch.equal(one.inputs[:half], one.inputs[half:])
        # 0.1 spread over 3 classes: 0.9333 for the true one where a label is not mixed
        assert float(one.labels.max(dim=1).values.min()) < 0.9


def test_second_view_is_moved_by_other_draws_and_the_first_as_in_plain_batches() -> None:
    plain = {
        int(i): x
        for one in batches(shaded(16), augment=MOVED).epoch(0)
        for i, x in zip(one.ids, one.inputs, strict=True)
    }
    differ = 0
    for one in batches(shaded(16), augment=MOVED, sampling="two_views").epoch(0):
        half = len(one.ids) // 2
        assert torch.equal(one.ids[:half], one.ids[half:])
        assert torch.equal(one.labels[:half], one.labels[half:])
        assert all(torch.equal(x, plain[int(i)]) for i, x in zip(one.ids[:half], one.inputs[:half], strict=True))
        differ += sum(not torch.equal(a, b) for a, b in zip(one.inputs[:half], one.inputs[half:], strict=True))
    assert differ > 12


def test_two_views_are_equal_when_they_are_only_mixed() -> None:
    for one in batches(shaded(16), augment=AugmentSettings(mixup=1.0), sampling="two_views").epoch(0):
        half = len(one.ids) // 2
        assert torch.equal(one.inputs[:half], one.inputs[half:])
        assert torch.equal(one.labels[:half], one.labels[half:])


@pytest.mark.parametrize("sampling", HALVED)
def test_error_when_a_batch_cannot_be_halved(sampling: Sampling) -> None:
    with pytest.raises(UsageError, match=rf"batch_size must be even .*'{sampling}'\), got 5"):
        batches(numbered(10), batch_size=5, sampling=sampling)


# samples without labels


def test_samples_without_label_have_zeros_even_when_labels_are_smoothed() -> None:
    samples = InMemorySamples(numbered(4).pixels, torch.tensor([1, -1, 0, -1]))
    found = next(batches(samples, shuffle=False, label_smoothing=0.3).epoch(0))
    # 0.3 spread over 3 classes: 0.1 each, and 0.7 more for the true one
    torch.testing.assert_close(found.labels[0], torch.tensor([0.1, 0.8, 0.1]))
    assert torch.equal(found.labels[[1, 3]], torch.zeros(2, 3))


def test_partners_of_the_same_class_need_labels() -> None:
    samples = InMemorySamples(numbered(4).pixels, torch.tensor([1, -1, 0, -1]))
    with pytest.raises(UsageError, match=r"'same_class'\) need labels, but the training split has samples without"):
        batches(samples, sampling="same_class")
    assert len(list(batches(samples, sampling="repeat_half").epoch(0))) == 1
    below = InMemorySamples(numbered(2).pixels, torch.tensor([0, -2]))
    with pytest.raises(DataError, match="got -2 to 0"):
        batches(below)


def _made(sampling: str, **options: object) -> Batches:
    generator = torch.Generator().manual_seed(3)
    split = InMemorySamples(torch.rand(45, 1, 6, 6, generator=generator), torch.arange(45) % 3)
    return Batches(
        split,
        batch_size=8,
        classes=3,
        preprocessing=Preprocessing(size=[6, 6], channels=1, mean=[0.5], std=[0.5]),
        seed=4,
        augment=AugmentSettings(crop=1, flip=True, cutout=2, mixup=0.4),
        sampling=sampling,
        **options,
    )


@pytest.mark.parametrize("sampling", ["plain", "repeat_half", "same_class", "two_views"])
@pytest.mark.parametrize("count", [2, 3])
def test_rows_of_all_shares_are_the_rows_of_the_whole_batch(sampling: str, count: int) -> None:
    source = _made(sampling)
    shares = [list(source.epoch(1, share=Share(index, count))) for index in range(count)]
    for whole, *parts in zip(source.epoch(1), *shares, strict=True):
        assert all(part.total == whole.total == len(whole.ids) for part in parts)
        rows = {int(i): None for part in parts for i in part.ids}
        assert sorted(rows) == sorted({int(i) for i in whole.ids})
        for part in parts:
            # a sample may be there twice, in the other half: its row there is another one
            for image, label, sample in zip(part.inputs, part.labels, part.ids, strict=True):
                same = [
                    torch.equal(image, whole.inputs[row]) and torch.equal(label, whole.labels[row])
                    for row in (whole.ids == sample).nonzero()[:, 0].tolist()
                ]
                assert any(same)
    lengths = {sum(len(part.ids) for part in parts) for parts in zip(*shares, strict=True)}
    assert max(lengths) <= 8 * count


@pytest.mark.parametrize("sampling", ["plain", "repeat_half", "same_class", "two_views"])
def test_epoch_from_a_later_batch_is_the_rest_of_the_epoch(sampling: str) -> None:
    source = _made(sampling)
    whole = list(source.epoch(2))
    for start in (0, 1, len(whole) - 1, len(whole)):
        rest = list(source.epoch(2, start=start))
        assert len(rest) == len(whole) - start
        for one, other in zip(rest, whole[start:], strict=True):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.labels, other.labels)


def test_views_repeat_after_so_many_epochs() -> None:
    source = _made("plain", views=2)
    first, third, second = (torch.cat([one.inputs for one in source.epoch(epoch)]) for epoch in (0, 2, 1))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_process_gets_everything_where_there_are_too_few_rows() -> None:
    assert Share(1, 4).rows(3).tolist() == [0, 1, 2]
    assert Share(1, 4).rows(9).tolist() == [1, 5]
