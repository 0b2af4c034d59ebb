"""_background: a thread beside the training takes no cores from it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from edgekd._background import background

POOLS = """
import os, sys, threading
import torch
from concurrent.futures import ThreadPoolExecutor
from edgekd._background import background

torch.set_num_threads(2)
large = torch.ones(1 << 22)
large.clone()  # the main thread's own
tasks = lambda: len(os.listdir("/proc/self/task"))
before = tasks()
make = background if sys.argv[1] == "alone" else (lambda name: ThreadPoolExecutor(1))
with make("test") as pool:
    pool.submit(large.clone).result()
    print(tasks() - before)
"""


def test_its_threads_compute_alone_and_nobody_else_does() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with background("test", 4) as pool:
            meeting = threading.Barrier(4)

            def threads() -> int:
                meeting.wait(10)  # so that all four are made
                return torch.get_num_threads()

            assert [one.result() for one in [pool.submit(threads) for _ in range(4)]] == [1, 1, 1, 1]
            with background("inner") as inner:  # as the decoding of files, in the thread that makes batches
                assert pool.submit(lambda: inner.submit(torch.get_num_threads).result()).result() == 1
            assert torch.get_num_threads() == 3
            later: list[int] = []
            other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            other.start()
            other.join()
            assert later == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux counts a process's threads in /proc")
def test_no_pool_of_openmp_is_made_for_it() -> None:
    # the thread itself; and without care the one that OpenMP gives it
    for way, more in (("alone", "1"), ("as it comes", "2")):
        done = subprocess.run([sys.executable, "-c", POOLS, way], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == more
