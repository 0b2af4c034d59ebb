"""Which samples calibrate: hand-worked choices, determinism, and the bound of the greedy spread."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekd.batches import calibration_ids
from edgekd.calibration import _selection
from edgekd.calibration._selection import first, k_center, random
from edgekd.datasets._base import InMemorySamples
from edgekd.errors import DataError, UsageError

IDS = torch.tensor([40, 10, 30, 20, 50])


def features(rows: int, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def radius(points: Tensor, taken: list[int]) -> float:
    """The largest distance of any point to its nearest taken one."""
    return float(torch.cdist(points, points[taken]).min(dim=1).values.max())


def test_first_takes_the_first_in_their_order() -> None:
    assert first(IDS, 3).tolist() == [40, 10, 30]


def test_random_takes_different_samples_and_a_larger_count_only_appends() -> None:
    ids = torch.arange(1000)
    few, many = random(ids, 100, seed=3), random(ids, 500, seed=3)
    assert torch.equal(few, many[:100])
    assert len(set(many.tolist())) == 500
    assert random(ids, 100, seed=4).tolist() != few.tolist()


def test_random_does_not_depend_on_the_order_of_the_candidates() -> None:
    assert random(IDS, 3, seed=0).tolist() == random(IDS.flip(0), 3, seed=0).tolist()


def test_random_is_the_choice_that_data_sets_make() -> None:
    samples = InMemorySamples(torch.zeros(77, 1, 2, 2), torch.zeros(77, dtype=torch.int64))
    wanted = calibration_ids(samples, 20, seed=5)
    assert torch.equal(random(torch.arange(77), 20, seed=5), wanted)


def test_random_takes_every_sample_equally_often() -> None:
    taken = torch.zeros(10)
    for seed in range(2000):
        taken[random(torch.arange(10), 3, seed=seed)] += 1
    # 600 expected, standard deviation sqrt(2000 * 0.3 * 0.7) = 20
    assert float((taken - 600).abs().max()) < 5 * 20


def start(seed: int, rows: int) -> int:
    return int(random(torch.arange(rows), 1, seed=seed)[0])


def test_k_center_takes_the_farthest_in_turn() -> None:
    # on a line: from 0 the farthest is 10, then 6 (4 from 10, 6 from 0), then 3 (3 from both neighbours)
    line = torch.tensor([[0.0], [1.0], [3.0], [6.0], [10.0]])
    seed = next(seed for seed in itertools.count() if start(seed, 5) == 0)
    assert k_center(line, 4, seed=seed).tolist() == [0, 4, 3, 2]


def test_k_center_takes_the_first_of_equally_far_ones() -> None:
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    seed = next(seed for seed in itertools.count() if start(seed, 4) == 0)
    # opposite corner, then the two that are 1 from both
    assert k_center(square, 4, seed=seed).tolist() == [0, 3, 1, 2]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 9), count=st.integers(1, 4), seed=st.integers(0, 100))
def test_k_center_is_within_twice_the_best_choice(rows: int, count: int, seed: int) -> None:
    count = min(count, rows)
    points = features(rows, 2, seed)
    best = min(radius(points, list(some)) for some in itertools.combinations(range(rows), count))
    assert radius(points, k_center(points, count, seed=seed).tolist()) <= 2 * best * (1 + 1e-5)


def test_k_center_takes_no_sample_twice_when_all_are_equal() -> None:
    assert sorted(k_center(torch.ones(6, 3), 6, seed=0).tolist()) == list(range(6))


def test_k_center_spreads_wider_than_chance() -> None:
    # 980 alike and 20 far apart: chance finds few of the 20
    points = torch.cat([features(980) * 0.01, features(20) * 100])
    spread, chance = k_center(points, 25, seed=0), random(torch.arange(1000), 25, seed=0)
    assert int((spread >= 980).sum()) == 20
    assert int((chance >= 980).sum()) < 5


def test_k_center_is_the_same_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    points = features(101, 7)
    whole = k_center(points, 30, seed=1)
    monkeypatch.setattr(_selection, "_BLOCK", 20)
    assert torch.equal(k_center(points, 30, seed=1), whole)
    assert torch.equal(k_center(points.numpy(), 30, seed=1), whole)


def test_k_center_reads_features_that_are_mapped_from_a_file(tmp_path: Path) -> None:
    points = features(50).numpy()
    np.save(tmp_path / "features.npy", points)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert torch.equal(k_center(mapped, 9, seed=0), k_center(points, 9, seed=0))


@pytest.mark.parametrize("count", [0, 6, -1])
def test_count_is_refused_when_there_are_not_so_many(count: int) -> None:
    for choose in (
        lambda: first(IDS, count),
        lambda: random(IDS, count, seed=0),
        lambda: k_center(torch.zeros(5, 2), count, seed=0),
    ):
        with pytest.raises(UsageError, match=f"Cannot choose {count} of 5 calibration samples. Set the count between"):
            choose()


def test_features_are_refused_when_they_are_no_matrix() -> None:
    with pytest.raises(UsageError, match=r"shape \(N, D\), got \[4, 3, 2\]\. Flatten"):
        k_center(torch.zeros(4, 3, 2), 2, seed=0)


def test_features_are_refused_when_one_is_no_number() -> None:
    points = features(8)
    points[5, 2] = float("nan")
    with pytest.raises(DataError, match="A feature of sample 5 is NaN, infinite"):
        k_center(points, 8, seed=0)
