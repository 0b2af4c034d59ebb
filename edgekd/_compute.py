"""Where and how training computes: device, processes, threads and memory layout."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from edgekd import _group
from edgekd.errors import BackendMissing, UsageError
from edgekd.recipe import ComputeSettings
from edgekd.taps import probe, tapped

__all__ = ["accelerator", "faster_layout", "threads"]


def accelerator(compute: ComputeSettings) -> Accelerator:
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise BackendMissing(
            "compute.device is 'cuda', but torch finds no CUDA device here. Set compute.device = 'cpu', or install a"
            " torch built for CUDA."
        )
    cpu = compute.device == "cpu" or not torch.cuda.is_available()
    _group.join(cpu=cpu)
    # every process has what it needs of the buffers: batch statistics are of all rows, or made one at an epoch's end
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    try:
        # precision is applied by this module: accelerate fixes it for the whole process at its first use
        return Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=handlers)
    except ValueError as error:
        raise UsageError(
            f"compute.device is '{compute.device}', but this process has trained on another device already."
            " Start a new process."
        ) from error


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def faster_layout(networks: Iterable[nn.Module], example: Tensor) -> torch.memory_format:
    """Channels last where every network can run it, which is 1.2 to 1.4 times faster for convolutions.

    A network that reshapes a feature map with `view` counts on the default layout, and fails in any other.

    Args:
        networks: not changed.
        example: inputs; only (B, C, H, W) have a layout to choose.
    """
    if example.dim() != 4:
        return torch.contiguous_format
    for network in networks:
        copied = copy.deepcopy(network)
        copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's annotations
        try:
            probe(tapped(copied, ()), example.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return torch.contiguous_format
    return torch.channels_last
