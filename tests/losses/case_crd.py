"""What the contract needs to know of `crd`: its memories and its Z must have seen a batch."""

from __future__ import annotations

import torch

from edgekd.losses._base import Loss, Outputs, Step

CHANGES = {"negatives": 8, "momentum": 0.9}  # the contract's split has 30 samples


def PREPARE(loss: Loss) -> None:  # noqa: N802
    """One step on every sample of the split: fills the memories and sets Z."""
    generator = torch.Generator().manual_seed(7)

    def side(channels: int) -> Outputs:
        maps = {
            name: torch.randn(30, channels, size, size, generator=generator)
            for name, size in {"wide": 6, "small": 3}.items()
        }
        return Outputs(torch.zeros(30, 3), maps)

    labels = torch.eye(3)[torch.arange(30) % 3]
    loss(Step(side(4), (side(7),), labels, torch.arange(30), epoch=0, progress=0.0))
