"""Connectors: the trained layers that bring a student's maps to a teacher's channels; none of them is exported."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd import _group
from edgekd.losses._base import float32
from edgekd.losses._gather import gathered

__all__ = ["BatchNorm", "projection"]


class BatchNorm(nn.Module):
    """Normalise each channel over the batch of all processes, then scale and shift it.

    It keeps no running statistics: a connector is used in training only. A channel that is constant over the batch
    comes out as its shift, so a batch of one vector is no error. It computes in float32 under autocast too.

    Args:
        channels: C.

    Reference: Ioffe, Szegedy, "Batch Normalization", 2015, arXiv:1502.03167, algorithm 1.
    """

    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to float32 of the same shape."""
        values = float32(maps)
        if _group.count() == 1 and values.numel() > values.shape[1]:  # fused: three times as fast
            return F.batch_norm(values, None, None, self.weight, self.bias, training=True, eps=self.eps)
        mean, variance = _moments(values)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (values - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


def projection(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution without bias and a `BatchNorm`: C of the student to C of the teacher."""
    layer = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return nn.Sequential(layer, BatchNorm(outputs))


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over every process's samples, shape (C,) each.

    Processes exchange three numbers a channel and not their maps.
    """
    variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
    count = mean.new_full((), values.numel() / values.shape[1]).expand_as(mean)
    counts, means, variances = gathered(torch.stack([count, mean, variance])[None]).unbind(1)
    share = counts / counts.sum(0)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)
