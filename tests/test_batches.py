from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from edgekd.batches import Batches, calibration_ids, evaluation_batches
from edgekd.datasets._base import InMemorySamples, Samples
from edgekd.errors import DataError, UsageError
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
) -> Batches:
    return Batches(
        samples,
        batch_size=batch_size,
        classes=3,
        preprocessing=preprocessing,
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
    with pytest.raises(DataError, match=r"labels must be in \[0, 2\] for 3 classes, got 0 to 3"):
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
