"""A teacher ready to fill a cache: where it computes, in which precision and memory layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from edgekd._compute import faster_layout
from edgekd.batches import RawBatch
from edgekd.methods._observe import tell_ids
from edgekd.taps import Tapped, TupleOutputs, named_outputs, tapped

__all__ = ["Runner"]


class Runner:
    """A teacher, ready to answer batches as fast as it can.

    Args:
        teacher: moved to the device, into evaluation mode, and to the memory layout that it computes faster in.
        taps: layers whose outputs are wanted.
        device: where to compute.
        precision: float32, or bfloat16 by autocast.
        example: some inputs.
    """

    def __init__(
        self, teacher: nn.Module, taps: Sequence[str], *, device: torch.device, precision: str, example: Tensor
    ) -> None:
        self.taps = tuple(taps)
        self.network: Tapped | TupleOutputs = tapped(teacher, taps)
        self.network.eval().to(device)
        self.device, self.precision = device, precision
        self.layout = faster_layout([self.network], example.to(device))
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]  # missing from torch's annotations

    def __call__(self, batch: RawBatch, epoch: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Logits and taps of a batch."""
        inputs = batch.inputs.to(self.device, non_blocking=True, memory_format=self.layout)
        tell_ids(self.network, batch.ids, epoch)
        lower = self.precision != "float32"
        cast = torch.autocast(self.device.type, dtype=torch.bfloat16) if lower else nullcontext()
        with torch.inference_mode(), cast:
            return named_outputs(self.network, self.network(inputs))
