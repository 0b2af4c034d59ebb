"""One process of a launch: trains the pair on its own core, and writes what its steps took."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("work")
parser.add_argument("--answer", type=Path, required=True, help="start of the names of the files to write")
parser.add_argument("--cores", type=int, nargs="+", required=True, help="of the processes, by rank")
parser.add_argument("--own-statistics", action="store_true", help="every process normalises by its own rows")
options = parser.parse_args()
rank = int(os.environ.get("RANK", "0"))
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {options.cores[rank]})  # before torch counts the cores

import torch  # noqa: E402
from _cifar_pair import Work  # noqa: E402
from _trainings import COMPUTE, batches_of, method_of, trained  # noqa: E402

from edgekd.engine import EpochRecord  # noqa: E402


def main() -> None:
    torch.set_num_threads(1)
    work = Work.of(options.work)
    batches = batches_of(work)
    method = method_of("online", work, batches, options.answer)
    found = {"images": 0, "steps": 0, "seconds": 0.0, "cpu_seconds": 0.0, "rank": rank}
    mark = time.process_time()

    def on_epoch(record: EpochRecord) -> None:
        nonlocal mark
        now = time.process_time()
        if record.epoch > 0 and record.profile is not None:
            found["images"] += record.profile.images
            found["steps"] += record.profile.steps
            found["seconds"] += sum(record.profile.seconds.values())
            found["cpu_seconds"] += now - mark
        mark = now

    compute = COMPUTE.model_copy(update={"sync_batch_norm": not options.own_statistics})
    trained(method, work, batches, compute=compute, on_epoch=on_epoch)
    options.answer.with_name(f"{options.answer.name}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


main()
