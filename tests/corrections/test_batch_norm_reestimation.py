"""Batch statistics measured anew: numbers by hand, batches weighted by their samples, and nothing else touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.catalog import CATALOGS
from edgekd.corrections._base import Context
from edgekd.corrections.batch_norm_reestimation import BatchNormReestimation
from edgekd.errors import DataError
from edgekd.spec import Options

X86 = CATALOGS["targets"].load("onnxruntime_x86").member.numerics


def reestimated(network: nn.Module, *batches: Tensor) -> nn.Module:
    BatchNormReestimation(Options()).apply(network, Context(lambda: list(batches), X86, False))
    return network


def test_statistics_are_those_worked_by_hand() -> None:
    norm = nn.BatchNorm1d(1).eval()
    reestimated(norm, torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0], [8.0]]))
    # means 2 and 5, variances 2 and 20/3, weighted 2 to 4
    assert float(norm.running_mean) == pytest.approx((2 * 2 + 4 * 5) / 6)  # type: ignore[arg-type]
    assert float(norm.running_var) == pytest.approx((2 * 2 + 4 * 20 / 3) / 6)  # type: ignore[arg-type]


def test_old_statistics_are_forgotten() -> None:
    data = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    found = []
    for start in (0.0, 1e6):
        norm = nn.BatchNorm1d(3).eval()
        norm.running_mean.fill_(start)  # type: ignore[union-attr]
        norm.running_var.fill_(start + 1)  # type: ignore[union-attr]
        reestimated(norm, *data.split(16))
        found.append((norm.running_mean, norm.running_var))
    assert torch.equal(found[0][0], found[1][0])  # type: ignore[arg-type]
    torch.testing.assert_close(found[0][0], data.mean(0))
    torch.testing.assert_close(found[0][1], data.var(0), rtol=0.15, atol=0.0)


def test_stale_statistics_of_a_network_are_put_right() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    data = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network.train()(data)
        network[1].running_mean.fill_(7.0)  # type: ignore[union-attr, operator]
        network.eval()
        stale = float((network(data) - wanted).square().mean())
        fresh = float((reestimated(network, data)(data) - wanted).square().mean())
    assert fresh < stale / 1000


def test_modes_momentum_dropout_and_weights_stay() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.3), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    weights = [one.clone() for one in network.parameters()]
    reestimated(network, torch.randn(8, 4))
    assert network[1].momentum == 0.3
    assert not any(one.training for one in network.modules())
    assert all(torch.equal(one, before) for one, before in zip(network.parameters(), weights, strict=True))
    assert all(one.grad is None for one in network.parameters())


def test_batches_of_one_sample_are_passed_over() -> None:
    norm = nn.BatchNorm1d(1).eval()
    reestimated(norm, torch.tensor([[1.0], [3.0]]), torch.tensor([[100.0]]))
    assert float(norm.running_mean) == 2.0  # type: ignore[arg-type]


def test_no_batch_of_two_is_refused_and_nothing_moves() -> None:
    norm = nn.BatchNorm1d(1).eval()
    with pytest.raises(DataError, match="needs a batch of at least two samples"):
        reestimated(norm, torch.tensor([[1.0]]))
    assert float(norm.running_mean) == 0.0  # type: ignore[arg-type]
    assert not norm.training


def test_network_without_statistics_needs_no_data() -> None:
    reestimated(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval())
