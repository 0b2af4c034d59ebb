"""Where the caches of a recipe lie, and of what they must be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekd import cache
from edgekd.artifact import content_hash
from edgekd.batches import Batches
from edgekd.errors import UsageError
from edgekd.methods._panel import teacher_and_tap
from edgekd.pipeline._mentors import Mentor
from edgekd.pipeline._run import Run
from edgekd.recipe import CacheSettings, TrainSettings

__all__ = ["batches_of", "epochs_of", "fingerprint_of", "kept_taps", "place_of", "root_of"]


def epochs_of(run: Run) -> int:
    """How many epochs of views there are; the student's training repeats them if it is longer."""
    settings = run.recipe.distill.cache
    return (settings.epochs if settings is not None else None) or run.recipe.distill.train.epochs


def batches_of(run: Run, train: TrainSettings) -> Batches:
    """The views of a cache: order and changes follow from the recipe's seed, whichever student is trained."""
    return Batches(
        run.data.train,
        batch_size=train.batch_size,
        classes=len(run.data.classes),
        preprocessing=run.data.preprocessing,
        seed=run.recipe.seed,
        augment=run.recipe.data.augment,
        device=run.device,
        views=epochs_of(run),
    )


def fingerprint_of(run: Run, mentors: Sequence[Mentor], mentor: Mentor, batches: Batches) -> cache.Fingerprint:
    """What the cache of one teacher must be of."""
    settings = run.recipe.distill.cache or CacheSettings()
    number = list(mentors).index(mentor) + 1
    return cache.fingerprint_of(
        batches,
        teacher=mentor.artifact.id,
        data=run.data.fingerprint,
        top_k=settings.top_k,
        dtype=settings.dtype,
        taps=[tap for of, tap in kept_taps(settings) if of == number],
        precision=run.recipe.compute.precision,
    )


def place_of(run: Run, mentors: Sequence[Mentor], mentor: Mentor) -> str:
    """Where the cache of one teacher lies: a folder of its role in the recipe's place.

    In the run's own folder it is named by what it is of, as stages are, so that a changed recipe makes another one.
    """
    name = mentor.role
    if run.recipe.distill.cache is not None and run.recipe.distill.cache.path is None:
        batches = batches_of(run, run.recipe.distill.train)
        own = content_hash(fingerprint_of(run, mentors, mentor, batches).model_dump(mode="json"))
        name = f"{name}-{own[:8]}"
    return f"{root_of(run)}/{name}"


def root_of(run: Run) -> str:
    """Folder or URL below which the caches of a recipe lie.

    Raises:
        UsageError: it has none.
    """
    settings = run.recipe.distill.cache
    if settings is None:
        raise UsageError(f"The recipe '{run.recipe.name}' has no table [distill.cache]. Add one; it may be empty.")
    if settings.path is None:
        return str(run.out / "cache")
    return (
        settings.path.rstrip("/") if "://" in settings.path else str(run.base_folder / Path(settings.path).expanduser())
    )


def kept_taps(settings: CacheSettings) -> list[tuple[int, str]]:
    """The kept taps as number of the teacher and name there."""
    return [teacher_and_tap(tap) for tap in settings.taps]
