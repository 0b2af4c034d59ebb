"""The optimizers compute what torch's do, to the bit, and start without torch's compiler."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from edgekd import _optimizers

CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    (_optimizers.SGD, optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (_optimizers.SGD, optim.SGD, {"lr": 0.1}),
    (_optimizers.AdamW, optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.999), "weight_decay": 0.01}),
]
FIRST_STEP = """
import sys, torch
from edgekd import _optimizers
for kind in (_optimizers.SGD, _optimizers.AdamW):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def stepped(network: nn.Module, optimizer: optim.Optimizer, count: int) -> list[Tensor]:
    for index in range(count):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(index))
        network(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [one.detach().clone() for one in network.parameters()]


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES)
def test_same_bits_as_torch(ours: Any, theirs: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    second = copy.deepcopy(first)
    a, b = ours(first.parameters(), **options), theirs(second.parameters(), **options)
    for x, y in zip(stepped(first, a, 3), stepped(second, b, 3), strict=True):
        assert torch.equal(x, y)
    again = ours(first.parameters(), **options)
    again.load_state_dict(copy.deepcopy(b.state_dict()))  # what one wrote, the other goes on with
    for x, y in zip(stepped(first, again, 2), stepped(second, b, 2), strict=True):
        assert torch.equal(x, y)


def test_step_leaves_no_graph() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = _optimizers.SGD([weight], lr=0.5)
    weight.sum().backward()
    optimizer.step()
    assert weight.tolist() == [0.5, 0.5]
    assert weight.requires_grad
    assert weight.is_leaf
    assert torch.is_grad_enabled()


def test_first_step_does_not_import_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_STEP], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
