"""Sums and gathers of tensors over the processes of a launch: what a step sends, and nothing overlaps with.

Between the processors of one host small tensors go over Unix sockets, from the thread that computes. Gloo hands each
message to threads of its own, and they share a core with that one: 1 ms at the median and 4 to 8 ms in one of ten
where every process has one core, against 0.01 ms here, and a step of a network with L synchronised layers sends 2 L.
Where no process takes another's core, one that waits keeps asking for a while: a core that went to sleep wakes late.
Large tensors, tensors on a GPU, and processes on several hosts take torch.distributed's way.

Every process calls these in the same order, as it must with torch.distributed.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from edgekd import _group

__all__ = ["averaged", "largest", "stacked", "summed", "summed_array"]

_LARGEST_BYTES = 1 << 20  # of a message over sockets, where every process sends to every other
_MOST_PROCESSES = 16  # the same reason
_CHUNK_BYTES = 1 << 15  # two of them fit any system's socket buffer, so that nobody waits for room that nobody makes
_TIMEOUT_S = 7200.0  # that of the other messages of a step
_PATIENCE_S = 0.02  # longer than the steps of processes differ, where nothing else disturbs them
_SHORTEST_WAIT_S = 30.0  # for processes to connect that have all just said that they are there

_line: _Line | None = None
_tried = False


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place: added in their order, so that all get the same bits.

    Args:
        values: of the same shape and type everywhere.
    """
    if _group.count() == 1:
        return values
    if (line := _line_for(values)) is None:
        torch.distributed.all_reduce(values)
        return values
    parts = line.exchange(values)
    total = parts[0]
    for part in parts[1:]:
        total += part
    return values.copy_(total)


def summed_array(values: NDArray[np.float64]) -> None:
    """`summed` of a contiguous array, with no tensor made on the way: of a small message that is most of the time.

    Args:
        values: of the same shape everywhere; replaced by the sum.
    """
    if _group.count() == 1:
        return
    if values.nbytes > _LARGEST_BYTES or (line := _ready_line()) is None:
        torch.distributed.all_reduce(torch.from_numpy(values))
        return
    parts = line.rows(values.reshape(-1).view(np.uint8)).view(np.float64)
    np.sum(parts, axis=0, out=values.reshape(-1))


def largest(values: Tensor) -> Tensor:
    """The largest of all processes' values, element by element, in place.

    Args:
        values: of the same shape and type everywhere.
    """
    if _group.count() == 1:
        return values
    if (line := _line_for(values)) is None:
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        return values
    return values.copy_(line.exchange(values).amax(0))


def stacked(values: Tensor) -> Tensor:
    """Every process's tensor, in their order.

    Args:
        values: of the same shape and type everywhere.

    Returns:
        shape (processes, *values.shape).
    """
    if _group.count() == 1:
        return values[None]
    if (line := _line_for(values)) is not None:
        return line.exchange(values)
    parts = [torch.empty_like(values) for _ in range(_group.count())]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def averaged(gradients: Tensor) -> torch.futures.Future[Tensor]:
    """The mean over the processes, in place, now or later.

    Args:
        gradients: a bucket of them, as torch's data-parallel wrapper hands it out.
    """
    gradients.div_(_group.count())
    if _line_for(gradients) is None:  # large ones travel while the backward pass goes on
        work = torch.distributed.all_reduce(gradients, async_op=True)
        return work.get_future().then(lambda done: done.value()[0])  # type: ignore[no-any-return]
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(summed(gradients))
    return done


class _Line:
    """One socket to each other process of this host; see `exchange`.

    Args:
        others: connected, by rank.
        patience_s: how long to keep asking before the core is given up.
    """

    def __init__(self, others: dict[int, socket.socket], *, patience_s: float) -> None:
        self._others, self._patience_s = others, patience_s
        self._rank, self._count = _group.index(), _group.count()
        self._arrivals: dict[int, select.poll] = {}
        for index, one in others.items():
            one.settimeout(_TIMEOUT_S)
            self._arrivals[index] = select.poll()
            self._arrivals[index].register(one, select.POLLIN)

    def exchange(self, values: Tensor) -> Tensor:
        """Every process's values, in their order, shape (processes, *values.shape).

        Raises:
            BackendMissing: another process ended or does not answer.
        """
        if not values.numel():  # of no bytes nothing else can be made
            return values.new_empty((self._count, *values.shape))
        mine = values.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return torch.from_numpy(self.rows(mine)).view(values.dtype).reshape(self._count, *values.shape)

    def rows(self, mine: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Every process's bytes, in their order, shape (processes, bytes).

        Raises:
            BackendMissing: see `exchange`.
        """
        found = np.empty((self._count, len(mine)), np.uint8)
        found[self._rank] = mine
        try:
            for start in range(0, len(mine), _CHUNK_BYTES):
                for other in self._others.values():
                    other.sendall(mine[start : start + _CHUNK_BYTES].data)
                for index, other in self._others.items():
                    self._wait(self._arrivals[index])
                    _fill(found[index, start : start + _CHUNK_BYTES].data, other)
        except OSError as error:
            raise _group.lost_contact() from error
        return found

    def _wait(self, arrival: select.poll) -> None:
        """Ask until something is there, or patience is at its end."""
        until = time.perf_counter() + self._patience_s
        while not arrival.poll(0) and time.perf_counter() < until:
            os.sched_yield()  # this process's own threads, if they want the core


def _fill(room: memoryview, source: socket.socket) -> None:
    while room:
        count = source.recv_into(room)
        if not count:
            raise ConnectionResetError("the other process closed its end")
        room = room[count:]


def _line_for(values: Tensor) -> _Line | None:
    """The sockets where they are the way for such a tensor, made at the first of them."""
    fits = values.device.type == "cpu" and values.nbytes <= _LARGEST_BYTES
    return None if not fits or torch.compiler.is_compiling() else _ready_line()


def _ready_line() -> _Line | None:
    global _line, _tried
    if not _tried:
        _line, _tried = _connected() if _group.count() <= _MOST_PROCESSES else None, True
    return _line


def _connected() -> _Line | None:
    """Sockets between all pairs, or None where any two processes cannot have one: hosts or containers that differ."""
    if not all(_group.gather(hasattr(socket, "AF_UNIX"))):
        return None
    folder = Path(_group.from_main(lambda: tempfile.mkdtemp(prefix="edgekd-")))  # for this user's eyes only
    index, count = _group.index(), _group.count()
    others: dict[int, socket.socket] = {}

    def listen() -> None:
        listener.bind(str(folder / str(index)))
        listener.listen(count)

    def meet() -> None:
        for lower in range(index):
            others[lower] = _socket()
            others[lower].connect(str(folder / str(lower)))
            others[lower].sendall(index.to_bytes(4, "little"))
        while len(others) < count - 1:
            higher, _ = listener.accept()
            higher.settimeout(_SHORTEST_WAIT_S)
            name = bytearray(4)
            _fill(memoryview(name), higher)
            others[int.from_bytes(name, "little")] = higher

    try:
        with _socket() as listener:
            met = _all_can(listen) and _all_can(meet)
    finally:
        if _group.is_main():
            shutil.rmtree(folder, ignore_errors=True)
    if met:
        return _Line(dict(sorted(others.items())), patience_s=_PATIENCE_S if _cores_for_all() else 0.0)
    for one in others.values():
        one.close()
    return None


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(_SHORTEST_WAIT_S)
    return made


def _all_can(step: Callable[[], None]) -> bool:
    """Whether a step succeeds in every process; all of them try it, and all get the same answer."""
    try:
        step()
    except OSError:
        return not _group.agreed(True)
    return not _group.agreed(False)


def _cores_for_all() -> bool:
    """Whether the processes may use at least as many cores as they are."""
    if not hasattr(os, "sched_getaffinity"):
        return False
    return len(set().union(*_group.gather(os.sched_getaffinity(0)))) >= _group.count()
