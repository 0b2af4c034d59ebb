"""edgekd's training of the pair, a round at a time: float in three ways, and as int8 in each phase of its ranges."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from _cifar_pair import Work
from _networks import calibrator, target
from _trainings import batches_of, losses, method_of, settings_of, student_of, teacher_of, trained
from _turns import Stopped, Turns
from torch import nn

from edgekd import quantize
from edgekd.batches import Batches
from edgekd.calibration._fake_quantize import Phase
from edgekd.engine import EpochRecord, Hooks
from edgekd.methods._base import Method
from edgekd.methods.offline import Offline
from edgekd.recipe import TrainSettings
from edgekd.taps import TupleOutputs

FLOAT = ("alone", "online", "cached")
PHASES: dict[str, Phase] = {"track": "track", "learn": "learn", "frozen": "frozen"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=[*FLOAT, *PHASES])
    parser.add_argument("work", type=Work.of)
    parser.add_argument("--folder", type=Path, required=True, help="where the cache lies")
    options = parser.parse_args()
    torch.set_num_threads(1)
    turns, work = Turns(), options.work
    batches = batches_of(work)
    settings, hooks = settings_of(work), Hooks()
    if options.way in FLOAT:
        method = method_of(options.way, work, batches, options.folder)
    else:
        method, hooks = quantized(work, batches, PHASES[options.way])
        # as the pipeline trains an int8 student, unless the recipe says otherwise
        settings = settings.model_copy(
            update={"optimizer": "adamw", "lr": 2e-4, "clip_grad_norm": 1.0, "weight_decay": 0.0}
        )
    turns.say(way=options.way, torch=torch.__version__)
    try:
        turns.wait()
        run(method, work, batches, settings, hooks, turns)
    except Stopped:
        pass


def run(method: Method, work: Work, batches: Batches, settings: TrainSettings, hooks: Hooks, turns: Turns) -> None:
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

    trained(method, work, batches, settings=settings, hooks=hooks, on_epoch=on_epoch)


def quantized(work: Work, batches: Batches, phase: Phase) -> tuple[Method, Hooks]:
    """The student's graph for ONNX Runtime on x86, calibrated, in one phase from the first step to the last."""
    example = next(batches.epoch(0)).inputs
    graph = quantize.prepare(
        student_of(work).eval(),
        example[:8],
        numerics=target("onnxruntime_x86").numerics,
        calibrator=calibrator("mse"),
        reduce_range=True,  # costs a little in every step, and is what a processor without VNNI trains
    )
    quantize.calibrate(graph, [example])
    quantize.set_phase(graph, "frozen")
    if phase == "learn":
        quantize.learn_ranges(graph)

    def on_step(progress: float) -> None:
        quantize.set_phase(graph, phase)

    def no_modes(module: nn.Module, training: bool) -> None:
        quantize.set_phase(graph, "frozen")

    method = Offline(TupleOutputs(graph, ()), [teacher_of(work)], losses())
    return method, Hooks(on_step=on_step, set_training=no_modes)


if __name__ == "__main__":
    main()
