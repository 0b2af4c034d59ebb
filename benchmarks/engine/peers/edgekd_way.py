"""edgekd's training of the float student, a round at a time: alone, with the teacher at work, from a warm cache."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from _cifar_pair import Work
from _trainings import COMPUTE, batches_of, method_of, trained
from _turns import Stopped, Turns

from edgekd.batches import Batches
from edgekd.engine import EpochRecord, Hooks
from edgekd.methods._base import Method
from edgekd.recipe import ComputeSettings, TrainSettings

__all__ = ["run"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=["alone", "online", "cached"])
    parser.add_argument("work", type=Work.of)
    parser.add_argument("--folder", type=Path, required=True, help="where the cache lies")
    options = parser.parse_args()
    torch.set_num_threads(options.work.threads)
    turns, batches = Turns(), batches_of(options.work)
    method = method_of(options.way, options.work, batches, options.folder)
    compute = COMPUTE.model_copy(update={"threads": options.work.threads})
    # with its checkpoint after every epoch, as every training of a recipe: its thread works beside the steps
    checkpoint = options.folder.parent / f"{options.way}.checkpoint"
    run(options.way, method, options.work, batches, turns, compute=compute, checkpoint=checkpoint)


def run(
    way: str,
    method: Method,
    work: Work,
    batches: Batches,
    turns: Turns,
    settings: TrainSettings | None = None,
    hooks: Hooks | None = None,
    compute: ComputeSettings = COMPUTE,
    checkpoint: Path | None = None,
) -> None:
    """One epoch a turn; between two turns the clock of the training stands still."""

    def on_epoch(record: EpochRecord) -> None:
        if record.profile is None:
            raise RuntimeError("an epoch without a profile")
        turns.answer(
            images=record.profile.images,
            seconds=sum(record.profile.seconds.values()),
            whole_seconds=record.seconds,
            parts=record.profile.seconds,
            loss=record.loss,
        )
        turns.wait()

    turns.say(way=way, torch=torch.__version__)
    with contextlib.suppress(Stopped):
        turns.wait()
        trained(
            method,
            work,
            batches,
            settings=settings,
            hooks=hooks,
            compute=compute,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
        )


if __name__ == "__main__":
    main()
