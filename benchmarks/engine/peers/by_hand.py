"""Distillation as one writes it by hand: a loop over the same batches, and nothing clever in it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import contextlib

import torch
import torch.nn.functional as F
from _cifar_pair import HARD, TAU, Work
from _trainings import batches_of, student_of, teacher_of
from _turns import Stopped, Turns

from edgekd.batches import Batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Work.of)
    parser.add_argument("--channels-last", action="store_true", help="both networks and the inputs")
    options = parser.parse_args()
    turns, work = Turns(), options.work
    torch.set_num_threads(work.threads)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    turns.say(way="by_hand_channels_last" if options.channels_last else "by_hand", torch=torch.__version__)
    with contextlib.suppress(Stopped):
        train(work, batches_of(work), layout, turns)


def train(work: Work, batches: Batches, layout: torch.memory_format, turns: Turns) -> None:
    """Epoch after epoch, one a turn."""
    teacher, student = teacher_of(work), student_of(work)
    teacher.to(memory_format=layout)  # type: ignore[call-overload]
    student.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        student.parameters(), lr=work.lr, momentum=work.momentum, weight_decay=work.weight_decay, nesterov=True
    )
    for epoch in range(work.rounds):
        turns.wait()
        began = time.perf_counter()
        student.train()
        total, images = 0.0, 0
        source = iter(batches.epoch(epoch))
        started = time.perf_counter()
        for batch in source:
            inputs = batch.inputs.to(memory_format=layout)
            with torch.no_grad():
                taught = teacher(inputs)
            logits = student(inputs)
            soft = F.kl_div(F.log_softmax(logits / TAU, dim=1), F.softmax(taught / TAU, dim=1), reduction="batchmean")
            loss = HARD * F.cross_entropy(logits, batch.labels) + (1 - HARD) * TAU**2 * soft
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total, images = total + loss.item(), images + len(inputs)
        now = time.perf_counter()
        turns.answer(images=images, seconds=now - started, whole_seconds=now - began, loss=total / len(batches))


if __name__ == "__main__":
    main()
