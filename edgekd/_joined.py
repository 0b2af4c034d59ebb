"""What several processes that train one student need beside the wrapper that averages their gradients."""

from __future__ import annotations

import torch
import torch.distributed
from accelerate import Accelerator
from torch import nn

from edgekd import _synced_norm
from edgekd._messages import averaged
from edgekd.methods._base import Method
from edgekd.recipe import ComputeSettings

__all__ = ["join_processes", "leave_processes", "share_buffers", "share_gradients"]


def join_processes(method: Method, compute: ComputeSettings, device: torch.device) -> None:
    """Let the networks of this process take part in the work of all.

    Args:
        method: prepared; its networks are changed in place.
        compute: sync_batch_norm and shard_teacher.
        device: where this process computes.
    """
    if compute.sync_batch_norm:
        _synced_norm.synced(method.trained())
    if compute.shard_teacher:
        from edgekd import _shared_teacher  # what it imports takes a second, and few need it

        for teacher in method.teachers:
            _shared_teacher.shard(teacher, device)


def leave_processes(method: Method) -> None:
    """Make plain networks of them again."""
    _synced_norm.restored(method.trained())


def share_gradients(wrapped: nn.Module, device: torch.device) -> None:
    """Let small gradients take the short way between the processors of one host.

    Args:
        wrapped: torch's data-parallel wrapper, or a module that has no gradients to share.
        device: where this process computes; on a GPU nothing is changed.
    """
    if device.type == "cpu" and isinstance(wrapped, nn.parallel.DistributedDataParallel):
        # torch reads a hook's annotations, and takes none that are strings
        wrapped.register_comm_hook(None, lambda state, bucket: averaged(bucket.buffer()))


def share_buffers(method: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the main one's buffers.

    Statistics that each process took from its own rows (batch normalisation that is not synchronised) differ; what is
    validated and kept must be one network. Once an epoch is enough: training reads only the batch's own.
    """
    if accelerator.num_processes == 1:
        return
    for buffer in method.buffers():
        torch.distributed.broadcast(buffer, src=0)
