"""Threads beside the one that trains, which must not take its processor cores."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["background"]

_SETTING = threading.Lock()


def background(name: str, workers: int = 1) -> ThreadPoolExecutor:
    """A pool whose threads each compute alone.

    A thread that runs a parallel operation of torch gets threads of its own from OpenMP, which stay as long as it does.
    With more of them than cores, GNU OpenMP sleeps at the end of every parallel operation where it span before, in
    the training's thread too: on two cores a step of small layers took twice as long after one operation elsewhere.

    Args:
        name: of its threads, for debuggers.
        workers: how many.
    """
    return ThreadPoolExecutor(max_workers=workers, thread_name_prefix=f"edgekd-{name}", initializer=_compute_alone)


def _compute_alone() -> None:
    # one at a time: between the two settings a new thread would take the 1 for what the process wants
    with _SETTING:
        wanted = torch.get_num_threads()
        if wanted == 1:
            return
        torch.set_num_threads(1)
        # that is this thread's number, and from here on every new thread's as well; another thread puts the latter back
        back = threading.Thread(target=torch.set_num_threads, args=(wanted,))
        back.start()
        back.join()
