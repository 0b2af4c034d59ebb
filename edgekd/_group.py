"""The processes of one launch: which of them this is, what they tell each other, and what only the main one does.

`torchrun` and `accelerate launch` start the same command several times. Without a launcher there is one process, which
is the main one; everything here is then free, and imports nothing.

Objects travel over a gloo group of their own, whatever carries the gradients: a wait there costs no GPU, and may be as
long as the main process's own work takes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from edgekd.errors import BackendMissing, EdgeKDError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

__all__ = [
    "agreed",
    "alone",
    "barrier",
    "copy_from_main",
    "count",
    "from_main",
    "gather",
    "index",
    "is_main",
    "join",
    "launched",
    "local_index",
    "losing_contact",
    "lost_contact",
]

_TIMEOUT = timedelta(hours=2)  # of a step: what takes longer is not coming
_PATIENCE = timedelta(days=7)  # of a wait for what the main process does by itself
_GLOO = "gloo"  # gloo has no exception of its own, but its errors name its source file

T = TypeVar("T")

_objects: ProcessGroup | None = None
_apart = 0


def launched() -> tuple[int, int]:
    """This process's number and how many a launcher started, from the environment: (0, 1) without one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if any(name not in os.environ for name in names):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def join(*, cpu: bool) -> None:
    """Meet the other processes of this launch; once is enough, and more does nothing.

    Args:
        cpu: the work is done on the processor, over gloo; else on this process's own GPU, over NCCL.

    Raises:
        BackendMissing: the others cannot be reached.
    """
    if launched()[1] == 1:
        return
    from accelerate import PartialState

    with losing_contact():
        PartialState(cpu=cpu, timeout=_TIMEOUT)


def count() -> int:
    """How many processes work together, at least 1."""
    group = _torch_distributed()
    return 1 if group is None else int(group.get_world_size())


def index() -> int:
    """This process's number, in [0, count())."""
    group = _torch_distributed()
    return 0 if group is None else int(group.get_rank())


def local_index() -> int:
    """This process's number on its own host: which of the GPUs there it takes."""
    return 0 if count() == 1 else int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this process writes artifacts, the report and the screen."""
    return index() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Work inside the block as if there were one process: for what only the main one does while the others wait."""
    global _apart
    _apart += 1
    try:
        yield
    finally:
        _apart -= 1


def barrier() -> None:
    """Wait until every process is here."""
    gather(None)


def from_main(make: Callable[[], T]) -> T:
    """What the main process makes, on every process; the others wait for it.

    Args:
        make: called by the main process only, which is `alone` meanwhile; what it gives must pickle.

    Raises:
        Exception: what `make` raised, on every process.
    """
    if count() == 1:
        return make()
    import torch.distributed as dist

    told: list[Any] = [None]
    if is_main():
        try:
            with alone():
                told = [(make(), None)]
        except Exception as error:
            dist.broadcast_object_list([(None, _sendable(error))], src=0, group=_group())
            raise
    dist.broadcast_object_list(told, src=0, group=_group())
    value, relayed = told[0]
    if relayed is not None:
        raise relayed
    return value  # type: ignore[no-any-return]


def gather(value: T) -> list[T]:
    """Every process's value, in their order; what they give must pickle."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value, group=_group())
    return found


def agreed(flag: bool) -> bool:
    """Whether any process says yes; every process gets the same answer."""
    if count() == 1:
        return flag
    import torch
    import torch.distributed as dist

    told = torch.tensor(int(flag))
    dist.all_reduce(told, op=dist.ReduceOp.MAX, group=_group())
    return bool(told)


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Give every process the main one's values, in place: running statistics that each of them followed for itself.

    Args:
        tensors: the same ones in the same order everywhere.
    """
    if count() == 1:
        return
    import torch.distributed as dist

    for tensor in tensors:
        dist.broadcast(tensor, src=0)


@contextmanager
def losing_contact() -> Iterator[None]:
    """Say in one sentence that a process is gone, wherever in the block torch noticed it.

    Raises:
        BackendMissing: another process ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:  # torch.distributed's own errors are of this kind too
        if launched()[1] == 1 or not _is_about_peers(error):
            raise
        raise lost_contact() from error


def lost_contact() -> BackendMissing:
    """What to raise where another process no longer answers."""
    return BackendMissing(
        "Another process of this run ended or cannot be reached; what it printed says why. Finished stages and the"
        " last checkpoint are kept: start the same command again."
    )


def _is_about_peers(error: RuntimeError) -> bool:
    module = sys.modules.get("torch.distributed")
    return _GLOO in str(error) or (module is not None and isinstance(error, module.DistError))


def _torch_distributed() -> Any:
    """torch.distributed where a group is at work, else None; a process without a group never imports it here."""
    if _apart:
        return None
    module = sys.modules.get("torch.distributed")
    return module if module is not None and module.is_available() and module.is_initialized() else None


def _group() -> ProcessGroup:
    """The group that objects travel over: made at the first use, which every process reaches."""
    global _objects
    if _objects is None:
        import torch.distributed as dist

        _objects = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return _objects


def _sendable(error: Exception) -> Exception:
    """The error itself if it can be rebuilt from its words, else one with its words and its exit code."""
    if type(error).__init__ is Exception.__init__:
        return error
    plain = EdgeKDError(str(error))
    plain.exit_code = getattr(error, "exit_code", 70)
    return plain
