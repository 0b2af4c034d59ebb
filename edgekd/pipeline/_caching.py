"""The teacher cache of a run: checked before it starts, filled before the student learns, read for the teachers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgekd import _group, cache
from edgekd.batches import Batches, Share
from edgekd.errors import UsageError
from edgekd.methods._panel import teacher_and_tap
from edgekd.pipeline._cache_place import batches_of, epochs_of, fingerprint_of, kept_taps, place_of, root_of
from edgekd.pipeline._mentors import Mentor
from edgekd.pipeline._run import Run, StageTime
from edgekd.pipeline._training import network_of, networks_of, weighted_losses
from edgekd.recipe import CacheSettings, LossSettings, TrainSettings
from edgekd.taps import tapped

__all__ = ["Lessons", "build_one", "check_cache", "deciding", "fill_cache", "lessons", "unfit"]

_STAGE = "cache"


@dataclass(frozen=True)
class Lessons:
    """Who teaches, and how batches must be drawn for them.

    Args:
        teachers: networks, or caches in their place.
        batches_seed: of order and augmentation; None for that of the training.
        views: epochs after which these repeat; None for never.
    """

    teachers: list[nn.Module]
    batches_seed: int | None = None
    views: int | None = None


def check_cache(run: Run, networks: Sequence[nn.Module]) -> None:
    """Find what would keep a recipe's cache from standing in for its teachers.

    Args:
        run: not started.
        networks: of everyone who is learned from, in their order.

    Raises:
        UsageError: a method that has no teacher or shows a sample more than once; a layer that a loss reads and the
            cache does not keep, or that the teacher does not have; a place that is none.
        BackendMissing: the package for such a URL.
    """
    settings = run.recipe.distill.cache
    if settings is None:
        return
    name = run.recipe.distill.method
    method, _ = run._load("methods", name)
    if not method.needs_teacher:
        raise UsageError(
            f"[distill.cache] keeps a teacher's answers, but the method '{name}' asks no teacher. Remove it."
        )
    if method.sampling != "plain":
        raise UsageError(
            f"[distill.cache] has one row for each sample of an epoch, but the method '{name}' shows samples more than"
            " once. Remove it, or use another method, offline for example."
        )
    for tap in settings.taps:
        number, inner = teacher_and_tap(tap)
        if number > len(networks):
            raise UsageError(f"distill.cache.taps: '{tap}' is of teacher {number}, but there are {len(networks)}.")
        tapped(networks[number - 1], [inner])
    for number, inner in _read_by(run, run.recipe.distill.losses):
        if (number, inner) not in kept_taps(settings):
            tap = inner if number == 1 else f"{number}:{inner}"
            raise UsageError(
                f"A loss reads '{tap}' of the teacher, which the cache does not keep. Add '{tap}' to"
                " distill.cache.taps."
            )
    if settings.path is not None:
        cache.check_place(root_of(run))


def deciding(run: Run) -> dict[str, Any]:
    """All of the cache that decides the student, as plain values; its place does not."""
    settings = run.recipe.distill.cache
    if settings is None:
        return {}
    epochs = min(epochs_of(run), run.recipe.distill.train.epochs)
    kept = cache.kept_classes(settings.top_k, len(run.data.classes))
    dtype = cache.kept_dtype(settings.dtype, kept)
    return {"cache": {"top_k": kept, "dtype": dtype, "epochs": epochs, "taps": settings.taps, "seed": run.recipe.seed}}


def fill_cache(run: Run, mentors: Sequence[Mentor], train: TrainSettings, *, as_stage: bool = True) -> None:
    """Build what a training needs and is missing.

    Args:
        run: the run.
        mentors: in their order.
        train: the training.
        as_stage: shown as a stage of its own; else as a part of the one that is at work.

    Raises:
        UsageError: something is missing, and the recipe says that a run does not build.
        MismatchError: the cache is of other answers; names the field.
    """
    settings = run.recipe.distill.cache
    if settings is None or any(one.stage == _STAGE for one in run.times):
        return
    started = time.monotonic()
    wanted = range(min(epochs_of(run), train.epochs))
    # the main process looks, so that all of them build, or none
    missing = _group.from_main(lambda: [_missing(run, mentors, one, list(wanted)) for one in mentors])
    if as_stage:
        run.watcher.stage(_STAGE, cached=not any(missing))
    for mentor, epochs in zip(mentors, missing, strict=True):
        if epochs and not settings.build:
            raise UsageError(
                f"The cache at {place_of(run, mentors, mentor)} lacks {len(epochs)} of {len(wanted)} epochs, and"
                f" distill.cache.build is false. Run `edgekd cache build {run.recipe_file or 'RECIPE'}`, or set it to"
                " true."
            )
        if epochs:
            build_one(run, mentors, mentor, epochs)
    _group.barrier()
    if as_stage:
        run.times.append(StageTime(_STAGE, time.monotonic() - started, cached=not any(missing)))


def build_one(run: Run, mentors: Sequence[Mentor], mentor: Mentor, epochs: Sequence[int]) -> cache.Built:
    """Fill the cache of one teacher with the missing ones of these epochs."""
    batches = batches_of(run, run.recipe.distill.train)
    rows = len(batches.samples)
    return cache.build(
        place_of(run, mentors, mentor),
        network_of(run, mentor.settings, mentor.artifact),
        batches,
        fingerprint=fingerprint_of(run, mentors, mentor, batches),
        epochs=epochs,
        compute=run.recipe.compute,
        device=run.device,
        share=Share(_group.index(), _group.count()),
        progress=lambda done, total: run.watcher.progress(
            done, total, f"{mentor.role}, epoch {min(done // rows + 1, len(epochs))}/{len(epochs)}"
        ),
    )


@contextmanager
def lessons(
    run: Run, mentors: Sequence[Mentor], losses: Sequence[LossSettings], train: TrainSettings
) -> Iterator[Lessons]:
    """Who teaches in a training: caches where the recipe has them, else the networks.

    Args:
        run: the run; `fill_cache` was called.
        mentors: in their order.
        losses: whose taps are read.
        train: the training.
    """
    settings = run.recipe.distill.cache
    if settings is None:
        yield Lessons(networks_of(run, mentors))
        return
    batches, read = batches_of(run, train), _read_by(run, losses)
    opened = []
    try:
        for number, mentor in enumerate(mentors, start=1):
            fingerprint = fingerprint_of(run, mentors, mentor, batches)
            place, most = place_of(run, mentors, mentor), _local_bytes(settings, len(mentors))
            found = cache.open_cache(place, fingerprint=fingerprint, local_bytes=most)
            if found is None:
                raise UsageError(f"There is no cache at {place}. Run `edgekd cache build RECIPE`.")
            opened.append((found, [tap for of, tap in read if of == number]))
        teachers = [one.teacher(batches, taps) for one, taps in opened]
        yield Lessons(list(teachers), run.recipe.seed, epochs_of(run))
    finally:
        for one, _ in opened:
            one.close()


def unfit(run: Run, losses: Sequence[LossSettings], train: TrainSettings, *, same_views: bool) -> str | None:
    """Why the training of an int8 student cannot learn from the float student's cache; None if it can.

    Args:
        run: with a cache in its recipe.
        losses: of that training.
        train: of that training.
        same_views: it changes images as the student's training did.
    """
    settings = run.recipe.distill.cache
    if settings is None:
        return "the recipe has no cache"
    if not same_views:
        return "it shows images without cutout and mixup, and the cache is of images with them"
    if train.epochs > min(epochs_of(run), run.recipe.distill.train.epochs):
        return f"it is of {train.epochs} epochs, and the cache of fewer"
    other = [tap for tap in _read_by(run, losses) if tap not in kept_taps(settings)]
    if other:
        return f"a loss reads the teacher's '{other[0][1]}', which the cache does not keep"
    rows = [_rows(batches_of(run, one)) for one in (train, run.recipe.distill.train)]
    if rows[0] != rows[1]:
        return f"its batches show {rows[0]} samples an epoch, and the cache is of {rows[1]}"
    return None


def _missing(run: Run, mentors: Sequence[Mentor], mentor: Mentor, epochs: list[int]) -> list[int]:
    fingerprint = fingerprint_of(run, mentors, mentor, batches_of(run, run.recipe.distill.train))
    found = cache.open_cache(place_of(run, mentors, mentor), fingerprint=fingerprint)
    return epochs if found is None else found.missing(epochs)


def _read_by(run: Run, losses: Sequence[LossSettings]) -> list[tuple[int, str]]:
    """The teachers' taps that losses read, each once."""
    names = [name for term in weighted_losses(run, losses) for name in term.loss.teacher_taps()]
    return list(dict.fromkeys(teacher_and_tap(name) for name in names))


def _rows(batches: Batches) -> int:
    return min(len(batches) * batches.batch_size, len(batches.samples))


def _local_bytes(settings: CacheSettings, caches: int) -> int:
    """What one process may keep of one cache: the bound is of all of them on this machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _group.count() > 1 else 1
    return (settings.local_mb << 20) // (caches * processes)
