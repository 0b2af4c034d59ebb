"""One process of a launch, on its own core: trains the pair, an epoch a turn."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("work")
parser.add_argument("--core", type=int, required=True)
parser.add_argument("--own-statistics", action="store_true", help="every process normalises by its own rows")
options = parser.parse_args()
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {options.core})  # before torch counts the cores

import torch  # noqa: E402
from _cifar_pair import Work  # noqa: E402
from _trainings import COMPUTE, batches_of, method_of  # noqa: E402
from _turns import Turns  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from edgekd_way import run  # noqa: E402


def main() -> None:
    torch.set_num_threads(1)
    turns, work = Turns(), Work.of(options.work)
    batches = batches_of(work)
    method = method_of("online", work, batches, Path())  # a teacher at work needs no folder
    compute = COMPUTE.model_copy(update={"sync_batch_norm": not options.own_statistics})
    run("online", method, work, batches, turns, compute=compute)


main()
