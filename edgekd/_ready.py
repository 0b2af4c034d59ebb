"""A method on its device, in its memory layout, and joined with the other processes that train it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgekd._compiling import compile_in_place
from edgekd._compute import accelerator, faster_layout
from edgekd._fit_types import BatchSource, RawBatch
from edgekd._joined import join_processes, leave_processes, share_gradients
from edgekd._sampling import Share
from edgekd.methods._base import Batch, Method
from edgekd.recipe import ComputeSettings

__all__ = ["Ready"]


class Ready:
    """What a method needs before its first step, and what is taken back after its last.

    Args:
        method: not prepared yet.
        batches: of which the first is the example.
        compute: device, processes.
        companions: see `Method.join`.
        steps: of the whole training.

    Raises:
        MismatchError, UsageError: student and teacher do not fit; see `Method.prepare`.
    """

    def __init__(
        self,
        method: Method,
        batches: BatchSource,
        compute: ComputeSettings,
        companions: Mapping[str, Tensor],
        steps: int,
    ) -> None:
        self.accelerator = accelerator(compute)
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        self.layout = torch.contiguous_format
        self._method, self._steps, self._steps_per_epoch = method, steps, len(batches)
        shared = compute.shard_teacher and self.share.count > 1
        # a teacher that is to be shared may not fit on the device: it is looked at where there is room for it
        self._device = torch.device("cpu") if shared else self.accelerator.device
        for module in self._all():
            module.to(self._device)
        example = self.batch(next(iter(batches.epoch(0, share=self.share))), step=0).inputs
        method.prepare(example)
        method.join(companions)
        self.layout = faster_layout([method.exported()] if shared else self.networks(), example)
        self._device = self.accelerator.device
        method.to(self._device)
        self._lay_out(self.layout)
        if self.share.count > 1:
            join_processes(method, compute, self._device)
        # one forward of the method is one forward of the wrapper: gradients of several processes meet in it
        self.wrapped: nn.Module = method
        if self.share.count > 1:  # for one process it would only import torch's distributed tensors, 0.8 s
            self.wrapped = self.accelerator.prepare(method)
            share_gradients(self.wrapped, self._device)

    def batch(self, raw: RawBatch, *, step: int) -> Batch:
        """A batch as the networks take it.

        Args:
            raw: this process's rows.
            step: 0-based, over the whole training.
        """
        device = self._device
        return Batch(
            inputs=raw.inputs.to(device, non_blocking=True, memory_format=self.layout),
            labels=raw.labels.to(device, non_blocking=True),
            ids=raw.ids.to(device, non_blocking=True),
            epoch=step // self._steps_per_epoch,
            progress=step / self._steps,
        )

    def networks(self) -> list[nn.Module]:
        """The student and its teachers."""
        return [self._method.exported(), *self._method.teachers]

    def release(self) -> None:
        """Plain networks again, in the default layout."""
        compile_in_place(self.networks(), off=True)
        if self.share.count > 1:
            leave_processes(self._method)
        self._lay_out(torch.contiguous_format)

    def _all(self) -> list[nn.Module]:
        return [self._method, *self._method.teachers]

    def _lay_out(self, layout: torch.memory_format) -> None:
        for module in self._all():
            module.to(memory_format=layout)  # type: ignore[call-overload]  # missing from torch's annotations
