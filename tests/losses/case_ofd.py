"""The contract's case of `ofd`."""

from __future__ import annotations

from torch import nn

from edgekd.losses._base import Loss

CHANGES = {"margin_steps": 0}  # of two numbers > 0 the first step shows nothing


def SETTLE(loss: Loss) -> None:  # noqa: N802 - the contract's name
    """Connectors that change nothing: a batch norm does, whatever its weights."""
    loss.connectors = nn.ModuleList(nn.Identity() for _ in loss.connectors)
