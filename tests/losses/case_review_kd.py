"""The contract's case of `review_kd`."""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.losses._base import Loss

CHANGES = {"warmup_epochs": 20}  # 1 is the full weight at once, as 0 is


class _Perfect(nn.Module):
    def forward(self, features: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        return features, features


def SETTLE(loss: Loss) -> None:  # noqa: N802 - the contract's name
    """Fusions that take nothing from the deeper stages and change nothing."""
    loss.fusions = nn.ModuleList(_Perfect() for _ in loss.fusions)
