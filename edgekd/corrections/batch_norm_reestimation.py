"""Batch statistics measured anew on the calibration data."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd.corrections._base import Context, Correction, Stage
from edgekd.errors import DataError

__all__ = ["BatchNormReestimation"]


class BatchNormReestimation(Correction):
    """Replace running means and variances by those of the calibration data.

    For a student whose statistics are stale: its weights were averaged, or it meets other data than it was trained on.
    Each layer sees what the layers before it give in training mode, as when the statistics were first made; batches
    count by their number of samples. This changes the float function, so the reference of every later
    comparison is the network with the new statistics.

    Reference: Nagel, Fournarakis, Bondarenko, Blankevoort, "Overcoming Oscillations in Quantization-Aware Training",
    2022, arXiv:2203.11086 (BN re-estimation).
    """

    stage: ClassVar[Stage] = "network"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> None:
        """Set the statistics of every batch normalisation that keeps some, in place.

        Raises:
            DataError: no batch has two samples.
        """
        norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
        if not norms:
            return
        before = [(one.training, one.momentum) for one in norms]
        samples = 0
        try:
            for batch in context.batches():
                if len(batch) < 2:
                    continue  # one sample has no variance where a layer sees one value a channel
                samples += len(batch)
                for one in norms:
                    one.train()
                    one.momentum = len(batch) / samples  # the first batch replaces, later ones are averaged in
                model(batch)
        finally:
            for one, (training, momentum) in zip(norms, before, strict=True):
                one.train(training)
                one.momentum = momentum
        if samples == 0:
            raise DataError(
                "batch_norm_reestimation needs a batch of at least two samples. Raise quantize.calibration_samples."
            )
