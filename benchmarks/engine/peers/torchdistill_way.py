"""The same training in torchdistill, by its own distillation box and loop. Imports torch and torchdistill only.

The images lie in memory; each is cropped and flipped when it is asked for, as its data sets do it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import contextlib

import torch
import torch.nn.functional as F
from _cifar_pair import HARD, MEAN, PAD, SIZE, STD, TAU, Work, labels, pixels, resnet
from _turns import Stopped, Turns
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler


def import_torchvision() -> None:
    """torchdistill imports torchvision, whose published build may be of another torch than the processor's one.

    Its operators for detection are then missing, and it does not even import. Nothing here calls them, so declaring
    them is enough.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in [one for one in sys.modules if one.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_torchvision.library = library  # type: ignore[attr-defined]  # it forgets its operators with itself
        import torchvision  # noqa: F401


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Noise in memory, cropped from a reflected border and flipped one image at a time."""

    def __init__(self, work: Work) -> None:
        self.pixels, self.labels = pixels(work.images, seed=work.seed), labels(work.images, work.classes)
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        padded = F.pad(self.pixels[index].float().div_(255), (PAD,) * 4, mode="reflect")
        top, left = torch.randint(0, 2 * PAD + 1, (2,)).tolist()
        image = padded[:, top : top + SIZE, left : left + SIZE]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image - self.mean) / self.std, self.labels[index]


def configuration(work: Work) -> dict[str, Any]:
    """As its YAML files say it."""
    loss = {
        "key": "KDLoss",
        "kwargs": {
            "student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".",
            "teacher_module_io": "output", "temperature": TAU, "alpha": HARD, "reduction": "batchmean",
        },
    }  # fmt: skip
    return {
        "num_epochs": work.rounds,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": work.batch, "num_workers": 0, "drop_last": False},
        },
        "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True},
        "optimizer": {
            "key": "SGD",
            "kwargs": {
                "lr": work.lr, "momentum": work.momentum, "weight_decay": work.weight_decay, "nesterov": True,
            },
        },
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Work.of)
    work = parser.parse_args().work
    torch.set_num_threads(work.threads)
    turns = Turns()
    logging.disable(logging.WARNING)
    import_torchvision()
    from torchdistill.core.distillation import get_distillation_box

    box = get_distillation_box(
        resnet(work.teacher, work.classes, seed=work.seed + 1).eval(),
        resnet(work.student, work.classes, seed=work.seed),
        {"train": Images(work)},
        configuration(work),
        torch.device("cpu"),
        None,
        False,
        1,
    )
    versions = {name: importlib.metadata.version(name) for name in ("torchdistill", "torch", "torchvision")}
    turns.say(way="torchdistill", versions=versions)
    with contextlib.suppress(Stopped):
        train(box, work, turns)


def train(box: Any, work: Work, turns: Turns) -> None:
    """Its loop, one epoch a turn."""
    for epoch in range(work.rounds):
        turns.wait()
        began = time.perf_counter()
        box.pre_epoch_process(epoch=epoch)
        total, images = 0.0, 0
        source = iter(box.train_data_loader)
        started = time.perf_counter()
        for sample_batch, targets, supp_dict in source:
            loss = box.forward_process(sample_batch, targets, supp_dict)
            box.post_forward_process(loss=loss)
            total, images = total + loss.item(), images + len(targets)
        now = time.perf_counter()
        turns.answer(images=images, seconds=now - started, whole_seconds=now - began, loss=total / work.steps)


if __name__ == "__main__":
    main()
