"""Where and how training computes: device, processes, threads and memory layout."""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from edgekd import _group
from edgekd.errors import BackendMissing, UsageError
from edgekd.recipe import ComputeSettings
from edgekd.taps import probe, tapped

__all__ = ["accelerator", "faster_layout", "keep_freed_memory", "return_freed_memory", "threads"]

_FEW = 8
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_KEPT_BYTES = 1 << 30


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


def keep_freed_memory() -> None:
    """Let this process keep memory that a step frees for the next one, where the C library is glibc.

    Else large tensors go back to the system after every step and come back page by page: of a ResNet-8's step at
    32 x 32 that was 10 to 15 % of the time. What is in use at most stays what it was; it is returned at the end.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt"):
        # either one alone leaves it as slow as it was
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)


def return_freed_memory() -> None:
    """Give the system what `keep_freed_memory` kept, so that memory in use can be told from memory that was."""
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


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

    A network that reshapes a feature map with `view` counts on the default layout, and fails in any other. And on a
    processor torch 2.13 writes past its memory in the backward pass of some layers (see `_overruns`).

    Args:
        networks: not changed.
        example: inputs; only (B, C, H, W) have a layout to choose.
    """
    networks = list(networks)
    if example.dim() != 4 or (example.device.type == "cpu" and any(_overruns(network) for network in networks)):
        return torch.contiguous_format
    for network in networks:
        copied = copy.deepcopy(network)
        copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's annotations
        try:
            probe(tapped(copied, ()), example.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return torch.contiguous_format
    return torch.channels_last


def _overruns(network: nn.Module) -> bool:
    """A 1x1 convolution over fewer than 8 channels that skips pixels: backward in channels last, it corrupts the heap.

    Seen with torch 2.13.0 for 1 to 7 input channels, stride 2, one group, any number of outputs; 8 channels, stride 1,
    several groups, larger kernels and the default layout are sound. To be tried again with a newer torch:
    `tests/test_compute.py` says so when it is mended.
    """
    if isinstance(network, torch.fx.GraphModule) or any(
        isinstance(one, torch.fx.GraphModule) for one in network.modules()
    ):
        # strides stand in the graph's calls; that a weight could be such a layer's is enough
        return any(one.dim() == 4 and one.shape[1] < _FEW and one.shape[2:] == (1, 1) for one in network.parameters())
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.groups == 1
        and layer.in_channels < _FEW
        for layer in network.modules()
    )
