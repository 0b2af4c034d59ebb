"""A frozen teacher whose weights several processes share: each holds a part; a block is whole only while it computes.

For a teacher that does not fit on one device. Each block's weights are gathered before its forward and dropped after
it, so the most that is whole at a time is one block; the price is that the weights travel once a step.

Reference: Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", 2023, arXiv:2304.11277; the
interface is that of torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from edgekd import _group
from edgekd.errors import UsageError

__all__ = ["shard"]

_FEWEST = 1 << 20
"""Weights of a block that is worth a message of its own; smaller ones travel with the block around them."""


def shard(network: nn.Module, device: torch.device | None = None) -> None:
    """Share a network's weights among all processes, in place; it computes what it did.

    It can be run under `no_grad` from then on, with the same number of calls in every process. It cannot be copied,
    trained or saved: this is for a teacher, at the start of a training.

    Args:
        network: with the same weights in every process. It may lie on the host, block after block is then cut and
            brought to the device: it never has to be there as a whole.
        device: where it computes; None for where it is.

    Raises:
        UsageError: the network has no weights of its own to share, or reads them past its layers.
    """
    if _group.count() == 1:
        return
    home = next((weight.device for weight in network.parameters()), None)
    if home is None:
        raise UsageError("compute.shard_teacher: this teacher has no weights of its own to share. Set it to false.")
    if isinstance(network, torch.fx.GraphModule):
        raise UsageError(
            "compute.shard_teacher: this teacher is a graph that reads its weights past its layers, so they cannot be"
            " shared. Set it to false, or give the teacher as a network with a file of weights."
        )
    network.eval().requires_grad_(False)
    # parts are cut from flat memory, so no other layout can be shared
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing from torch's annotations
    mesh = _mesh((device or home).type)
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network that are shared one by one: the innermost ones that are large enough."""
    for child in network.children():
        if sum(weight.numel() for weight in child.parameters()) < _FEWEST:
            continue
        inner = list(_blocks(child))
        yield from inner
        if not inner and not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield child


def _mesh(kind: str) -> DeviceMesh:
    return init_device_mesh(kind, (_group.count(),))
