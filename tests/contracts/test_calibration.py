"""Every calibrator of the catalog: a finite, ordered range inside what was seen, from the histogram alone."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from edgekd.calibration._base import Calibrator, Grid
from edgekd.calibration._histogram import Histogram
from edgekd.catalog import CATALOGS

NAMES = CATALOGS["calibration"].names()
GRIDS = [
    Grid(0, 255, symmetric=False),
    Grid(-128, 127, symmetric=False),
    Grid(-128, 127, symmetric=True),
    Grid(-128, 127, symmetric=True, half_scales=True),
]
TENSORS = {
    "normal": lambda: normal(4000),
    "after a ReLU": lambda: normal(4000).relu(),
    "negative only": lambda: -normal(4000).abs() - 0.1,
    "positive only": lambda: normal(4000).abs() + 5.0,
    "constant": lambda: torch.full((10,), 3.0),
    "zeros": lambda: torch.zeros(10),
    "one value": lambda: torch.tensor([-0.7]),
    "one outlier": lambda: torch.cat([normal(4000), torch.tensor([500.0])]),
    "tiny": lambda: normal(100) * 1e-30,
    "huge": lambda: normal(100) * 1e30,
}


def normal(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def made(name: str) -> Calibrator:
    member = CATALOGS["calibration"].load(name).member
    calibrator = member(member.Options())
    assert isinstance(calibrator, Calibrator)
    return calibrator


def seen(*tensors: Tensor) -> Histogram:
    histogram = Histogram()
    for tensor in tensors:
        histogram.update(tensor)
    return histogram


def test_catalog_holds_the_calibrators() -> None:
    assert len(NAMES) >= 5
    assert {"entropy", "minmax", "moving_average", "mse", "percentile"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", TENSORS)
def test_range_lies_within_what_was_seen(name: str, grid: Grid, kind: str) -> None:
    values = TENSORS[kind]()
    low, high = made(name).range(seen(values), grid)
    rounding = 1e-6 * max(abs(float(values.min())), abs(float(values.max())))
    assert min(float(values.min()), 0.0) - rounding <= low <= high <= max(float(values.max()), 0.0) + rounding
    scale, zero_point = grid.parameters(torch.tensor(low), torch.tensor(high))
    assert torch.isfinite(scale)
    assert float(scale) > 0
    assert float(grid.quantize(torch.tensor(0.0), scale, zero_point)) == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", TENSORS)
def test_range_is_the_same_when_batches_come_in_another_order(name: str, kind: str) -> None:
    values = TENSORS[kind]()
    batches = values.split(97)
    grid = GRIDS[0]
    assert made(name).range(seen(*batches), grid) == made(name).range(seen(*reversed(batches)), grid)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", TENSORS)
def test_range_is_the_same_from_parts_of_several_processes(name: str, kind: str) -> None:
    values = TENSORS[kind]()
    whole = Histogram()
    for part in reversed(values.split(max(1, len(values) // 5))):
        whole.merge(Histogram.from_json(json.loads(json.dumps(seen(part).to_json()))))
    assert made(name).range(whole, GRIDS[2]) == made(name).range(seen(values), GRIDS[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", TENSORS)
def test_range_holds_zero_s_code_when_nothing_is_negative(name: str, kind: str) -> None:
    values = TENSORS[kind]()
    if float(values.min()) < 0.0:
        values = values.abs()
    for grid in GRIDS[:2]:
        bounds = (torch.tensor(bound) for bound in made(name).range(seen(values), grid))
        assert int(grid.parameters(*bounds)[1]) == grid.low


@pytest.mark.parametrize("name", NAMES)
def test_histogram_is_not_changed(name: str) -> None:
    histogram = seen(normal(1000))
    before = histogram.to_json()
    made(name).range(histogram, GRIDS[0])
    assert histogram.to_json() == before


@pytest.mark.parametrize("name", NAMES)
def test_range_grows_with_the_values(name: str) -> None:
    once, twice = (made(name).range(seen(normal(4000) * factor), GRIDS[0]) for factor in (1.0, 2.0))
    assert twice == pytest.approx((2 * once[0], 2 * once[1]), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_default(name: str) -> None:
    options = CATALOGS["calibration"].options(name)
    assert options() == options(**options().model_dump())
