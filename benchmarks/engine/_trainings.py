"""What edgekd is given to train the pair: batches, losses, settings, a cache of the teacher."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from _cifar_pair import HARD, MEAN, PAD, SIZE, STD, TAU, Work, labels, pixels, resnet
from torch import nn

from edgekd import cache
from edgekd.batches import Batches
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import InMemorySamples
from edgekd.engine import EpochRecord, FitResult, Hooks, fit
from edgekd.methods._base import Method, WeightedLoss
from edgekd.methods.alone import Alone
from edgekd.methods.offline import Offline
from edgekd.recipe import AugmentSettings, ComputeSettings, TrainSettings
from edgekd.spec import Preprocessing

__all__ = [
    "COMPUTE",
    "batches_of",
    "cached_teacher",
    "losses",
    "method_of",
    "settings_of",
    "student_of",
    "teacher_of",
    "trained",
]

COMPUTE = ComputeSettings(device="cpu", threads=1)


def batches_of(work: Work, *, device: str = "cpu") -> Batches:
    """Crop and flip; the same batches for the same epoch, whoever trains."""
    return Batches(
        InMemorySamples(pixels(work.images, seed=work.seed), labels(work.images, work.classes)),
        batch_size=work.batch,
        classes=work.classes,
        preprocessing=Preprocessing(size=[SIZE, SIZE], channels=3, mean=list(MEAN), std=list(STD)),
        seed=work.seed,
        augment=AugmentSettings(crop=PAD, flip=True),
        views=work.views,
        device=device,
    )


def teacher_of(work: Work) -> nn.Module:
    """In evaluation mode."""
    return resnet(work.teacher, work.classes, seed=work.seed + 1).eval()


def student_of(work: Work) -> nn.Module:
    """As training begins."""
    return resnet(work.student, work.classes, seed=work.seed)


def losses() -> list[WeightedLoss]:
    """Labels and softened probabilities, as everybody else weighs them."""
    found = []
    for name, options, weight in (("cross_entropy", {}, HARD), ("kd", {"tau": TAU}, 1 - HARD)):
        member = CATALOGS["losses"].load(name).member
        found.append(WeightedLoss(name, member(member.Options(**options)), weight))
    return found


def settings_of(work: Work) -> TrainSettings:
    """Plain SGD at one rate: no schedule that the others would have to follow."""
    return TrainSettings(
        epochs=work.rounds,
        batch_size=work.batch,
        lr=work.lr,
        momentum=work.momentum,
        weight_decay=work.weight_decay,
        schedule="constant",
        warmup_epochs=0.0,
    )


def cached_teacher(work: Work, batches: Batches, folder: Path) -> nn.Module:
    """A dense cache of every view, built if it is not there, in the teacher's place."""
    fingerprint = cache.fingerprint_of(batches, teacher=f"resnet{work.teacher}", data=f"noise {work.seed}")
    views = range(work.views)
    cache.build(str(folder), teacher_of(work), batches, fingerprint=fingerprint, epochs=views, compute=COMPUTE)
    opened = cache.open_cache(str(folder), fingerprint=fingerprint)
    if opened is None:
        raise RuntimeError(f"{folder} holds no cache after it was built")
    return opened.teacher(batches)


def method_of(way: str, work: Work, batches: Batches, folder: Path) -> Method:
    """How edgekd trains the student: `alone`, `online` with the teacher at work, or `cached` without it."""
    if way == "alone":
        return Alone(student_of(work), [], losses())
    teacher = cached_teacher(work, batches, folder) if way == "cached" else teacher_of(work)
    return Offline(student_of(work), [teacher], losses())


def trained(
    method: Method,
    work: Work,
    batches: Batches,
    *,
    settings: TrainSettings | None = None,
    hooks: Hooks | None = None,
    compute: ComputeSettings = COMPUTE,
    checkpoint: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> FitResult:
    """One training; `on_epoch` is added to the hooks."""
    given = hooks or Hooks()
    together = Hooks(on_step=given.on_step, on_epoch=on_epoch, set_training=given.set_training, terms=given.terms)
    return fit(
        method,
        batches,
        settings=settings or settings_of(work),
        compute=compute,
        seed=work.seed,
        checkpoint=checkpoint,
        hooks=together,
    )
