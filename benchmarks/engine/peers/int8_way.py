"""edgekd's training of the int8 student from its teacher, a round at a time, in one phase of its ranges."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from _cifar_pair import Work
from _networks import calibrator, target
from _trainings import batches_of, losses, settings_of, student_of, teacher_of
from _turns import Turns
from edgekd_way import run
from torch import nn

from edgekd import quantize
from edgekd.batches import Batches
from edgekd.calibration._fake_quantize import Phase
from edgekd.engine import Hooks
from edgekd.methods._base import Method
from edgekd.methods.offline import Offline
from edgekd.taps import TupleOutputs

PHASES: dict[str, Phase] = {"track": "track", "learn": "learn", "frozen": "frozen"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=list(PHASES))
    parser.add_argument("work", type=Work.of)
    options = parser.parse_args()
    torch.set_num_threads(1)
    turns, batches = Turns(), batches_of(options.work)
    method, hooks = quantized(options.work, batches, PHASES[options.phase])
    # as the pipeline trains an int8 student, unless the recipe says otherwise
    changes = {"optimizer": "adamw", "lr": 2e-4, "clip_grad_norm": 1.0, "weight_decay": 0.0}
    settings = settings_of(options.work).model_copy(update=changes)
    run(options.phase, method, options.work, batches, turns, settings, hooks)


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
