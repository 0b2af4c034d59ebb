"""Two processes with half the batch each compute what one computes of the whole: value and gradients."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgekd.catalog import CATALOGS
from edgekd.losses._gather import gathered

BATCHWISE = [name for name in CATALOGS["losses"].names() if CATALOGS["losses"].load(name).member.batchwise]
WORKER = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from losses.two_processes import both_halves
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=2)
torch.save(both_halves({names!r}, rank), f"{{folder}}/rank{{rank}}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def test_one_process_gathers_nothing() -> None:
    values = torch.randn(3, 2)
    assert gathered(values) is values


def test_losses_that_look_at_the_batch_are_known() -> None:
    assert set(BATCHWISE) >= {"dist", "similarity_preserving", "rkd_distance", "rkd_angle", "pkt"}


@pytest.mark.skipif(os.name == "nt", reason="gloo's file store needs a POSIX file system")
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    from losses.two_processes import whole

    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parents[1]), names=BATCHWISE))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "USE_LIBUV": "0"}
    workers = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], env=environment) for rank in (0, 1)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    halves = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, (value, gradients) in whole(BATCHWISE).items():
        # either both have the whole batch's value, or each its half's mean: the wrapper averages them either way
        mean = (halves[0][name][0] + halves[1][name][0]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-7, msg=name)
        for index, wanted in enumerate(gradients):
            # each process's gradient is of the sum over processes: the wrapper that averages halves it again
            found = torch.cat([half[name][1][index] for half in halves]) / 2
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6, msg=name)


def test_this_file_finds_its_helper() -> None:
    assert importlib.util.find_spec("losses.two_processes") is not None
