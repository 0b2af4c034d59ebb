"""What torch.compile is given to trace computes the same numbers and gradients as what runs without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from edgekd import quantize
from edgekd.calibration import _compiled
from edgekd.calibration._fake_quantize import Phase
from edgekd.catalog import CATALOGS

ASYMMETRIC, SYMMETRIC = "onnxruntime_x86", "tensorrt"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Ranges on one side of 0 and on both, weights in both layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)
        self.last = nn.Linear(8, 4)

    def forward(self, values: Tensor) -> Tensor:
        found = self.second(self.first(values).relu())
        return cast(Tensor, self.last(found.mean((2, 3))))


@pytest.mark.parametrize(
    ("target", "phase"), [(ASYMMETRIC, "track"), (ASYMMETRIC, "learn"), (ASYMMETRIC, "frozen"), (SYMMETRIC, "learn")]
)
def test_a_traced_step_is_the_step(target: str, phase: Phase) -> None:
    ours, theirs = trained(prepared(target, phase), trace), trained(prepared(target, phase), lambda graph: graph)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 8
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=1e-4, atol=1e-7), name  # sums in another order


def test_learned_ranges_that_stand_still_are_traced() -> None:
    graph = prepared(ASYMMETRIC, "learn")
    quantize.set_phase(graph, "frozen")
    inputs = normal(4, 3, 8, 8, seed=3)
    assert torch.equal(trace(graph)(inputs)[0], graph(inputs)[0])


@pytest.mark.parametrize("operator", [_compiled.once, lambda numbers: _compiled.after(numbers, numbers[0])])
def test_barriers_change_nothing(operator: Callable[[Tensor], Tensor]) -> None:
    numbers = normal(6)
    assert torch.equal(operator(numbers), numbers)


def prepared(target: str, phase: Phase) -> nn.Module:
    torch.manual_seed(0)
    numerics = CATALOGS["targets"].load(target).member().numerics
    minmax = CATALOGS["calibration"].load("minmax").member(CATALOGS["calibration"].options("minmax")())
    graph = quantize.prepare(Net(), normal(4, 3, 8, 8), numerics=numerics, calibrator=minmax, reduce_range=True)
    quantize.calibrate(graph, [normal(4, 3, 8, 8)])
    if phase == "learn":
        quantize.learn_ranges(graph)
    quantize.set_phase(graph, phase)
    return graph


def trace(graph: nn.Module) -> Callable[..., Any]:
    return cast(Callable[..., Any], torch.compile(graph, backend="aot_eager", fullgraph=True))


def trained(graph: nn.Module, how: Callable[[nn.Module], Callable[..., Any]]) -> dict[str, Tensor]:
    """Outputs, gradients and ranges of a step on samples that leave the calibrated ranges."""
    run = how(graph)
    inputs = (normal(4, 3, 8, 8, seed=5) * 1.5).requires_grad_()
    logits = run(inputs)
    logits = logits[0] if isinstance(logits, (list, tuple)) else logits
    (logits * normal(4, 4, seed=6)).sum().backward()
    found = {"logits": logits.detach(), "inputs": cast(Tensor, inputs.grad)}
    found |= {f"gradient {name}": one.grad for name, one in graph.named_parameters() if one.grad is not None}
    return found | {name: one.clone() for name, one in graph.named_buffers()}
