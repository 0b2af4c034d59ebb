"""What test_gather.py computes in one process and in two: each loss on a batch of six, its value and gradients."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgekd.losses._base import Outputs, Step

__all__ = ["both_halves", "whole"]

Found = dict[str, tuple[Tensor, list[Tensor]]]


def whole(names: Sequence[str]) -> Found:
    """Every loss on the whole batch."""
    return {name: _computed(name, slice(0, 6)) for name in names}


def both_halves(names: Sequence[str], rank: int) -> Found:
    """Every loss on this process's half, in a process group of two."""
    return {name: _computed(name, slice(3 * rank, 3 * rank + 3)) for name in names}


def _computed(name: str, rows: slice) -> tuple[Tensor, list[Tensor]]:
    contract = _contract()
    student, teacher = (contract.outputs(name, side, side=side, batch=6) for side in (0, 1))
    labels = torch.eye(3)[torch.arange(6) % 3]
    ours = Outputs(_leaf(student.logits[rows]), {tap: _leaf(one[rows]) for tap, one in student.taps.items()})
    theirs = Outputs(teacher.logits[rows].detach(), {tap: one[rows].detach() for tap, one in teacher.taps.items()})
    loss = contract.connected(name, student, teacher)
    value = loss(Step(ours, (theirs,), labels[rows], torch.arange(6)[rows], epoch=0, progress=0.0))
    value.backward()
    leaves = [ours.logits, *ours.taps.values()]
    return value.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


def _leaf(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_()


def _contract() -> Any:
    path = Path(__file__).parents[1] / "contracts" / "test_losses.py"
    spec = importlib.util.spec_from_file_location("contract_of_losses", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
