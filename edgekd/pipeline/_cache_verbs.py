"""What `edgekd cache` does: build beforehand what a run would build, look whether it is sound, say what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgekd import _group, cache
from edgekd.errors import UsageError
from edgekd.pipeline._cache_place import batches_of, epochs_of, fingerprint_of, place_of, root_of
from edgekd.pipeline._caching import build_one, check_cache
from edgekd.pipeline._claim import claimed
from edgekd.pipeline._float_stages import mentor_stages
from edgekd.pipeline._mentors import Mentor, wanted
from edgekd.pipeline._run import NotThere, Run
from edgekd.pipeline._training import network_of
from edgekd.pipeline._watcher import Silent, Watcher
from edgekd.recipe import Recipe

__all__ = ["build_cache", "show_cache", "verify_cache"]


def build_cache(
    recipe: Recipe,
    *,
    out: Path,
    recipe_file: Path | None = None,
    part: tuple[int, int] | None = None,
    epochs: tuple[int, int] | None = None,
    watcher: Watcher | None = None,
) -> list[dict[str, Any]]:
    """Build the caches of a recipe's teachers, making the teachers first if they are not there.

    Only a teacher that must be made holds the run's folder: several builders work at once.

    Args:
        recipe: with [distill.cache].
        out: the run's folder.
        recipe_file: relative paths of the recipe start at its folder.
        part: number, counted from 1, and how many parts: every so manieth epoch.
        epochs: of views, the first and the last, counted from 0; None for all.
        watcher: told about progress.

    Returns:
        For each teacher plain values: role, where, rows that were computed now, epochs, seconds, bytes_per_view.

    Raises:
        EdgeKDError: whatever stops the teachers' stages, a cache of other answers, or a place that refuses.
    """
    run, mentors = _opened(recipe, out, recipe_file, watcher or Silent())
    chosen = _epochs(epochs_of(run), part, epochs)
    built = []
    for mentor in mentors:
        run.watcher.stage(f"cache {mentor.role}", cached=False)
        done = build_one(run, mentors, mentor, chosen)
        where = place_of(run, mentors, mentor)
        [about] = cache.summaries(where)
        built.append({"role": mentor.role, "where": where, **done.model_dump(), "bytes_per_view": about.bytes_per_view})
    return built


def _epochs(count: int, part: tuple[int, int] | None, epochs: tuple[int, int] | None) -> list[int]:
    first, last = epochs or (0, count - 1)
    if not first <= last < count:
        raise UsageError(
            f"--epochs {first}-{last}: the views of this recipe are the epochs 0 to {count - 1}. Set"
            " distill.cache.epochs for more."
        )
    number, parts = part or (1, 1)
    if not 1 <= number <= parts:
        raise UsageError(f"--part {number}/{parts}: the parts are 1/{parts} to {parts}/{parts}.")
    return list(range(first, last + 1))[number - 1 :: parts]


def verify_cache(
    recipe: Recipe,
    *,
    out: Path,
    recipe_file: Path | None = None,
    samples: int = 64,
    watcher: Watcher | None = None,
) -> list[dict[str, Any]]:
    """Compare every shard of a recipe's caches with its hash, and ask the teachers again about some views.

    Args:
        recipe: with [distill.cache].
        out: the run's folder, with the teachers.
        recipe_file: relative paths of the recipe start at its folder.
        samples: how many views are made again.
        watcher: told about progress.

    Returns:
        For each teacher plain values: role, where, shards, rows, largest_difference.

    Raises:
        ArtifactError: nothing is there, or a shard is missing or damaged; it is named.
        MismatchError: a cache is of other answers, or an answer is not what the teacher says; the first is named.
    """
    run, mentors = _opened(recipe, out, recipe_file, watcher or Silent())
    found = []
    for mentor in mentors:
        batches, where = batches_of(run, recipe.distill.train), place_of(run, mentors, mentor)
        run.watcher.stage(f"cache {mentor.role}", cached=False)
        looked = cache.verify(
            where,
            network_of(run, mentor.settings, mentor.artifact),
            batches,
            fingerprint=fingerprint_of(run, mentors, mentor, batches),
            rows=samples,
            compute=recipe.compute,
            device=run.device,
            progress=lambda done, total: run.watcher.progress(done, total, "hashes"),
        )
        found.append({"role": mentor.role, "where": where, **looked.model_dump()})
    return found


def show_cache(recipe: Recipe, *, out: Path, recipe_file: Path | None = None) -> list[cache.Summary]:
    """What lies in the caches of a recipe; of those in a run's folder also what earlier recipes left.

    Raises:
        ArtifactError: there is none, or one is damaged.
        UsageError: the recipe has no cache.
    """
    return cache.summaries(root_of(Run(recipe, out, recipe_file, Silent())))


def _opened(recipe: Recipe, out: Path, recipe_file: Path | None, watcher: Watcher) -> tuple[Run, list[Mentor]]:
    """A run with its teachers."""
    _group.join(cpu=recipe.compute.device == "cpu" or not torch.cuda.is_available())
    run = Run(recipe, out, recipe_file, watcher if _group.is_main() else Silent())
    root_of(run)
    check_cache(run, [run.build(settings, recipe.seed) for settings in wanted(run).values()])
    try:
        run.open_only = True
        return run, mentor_stages(run)
    except NotThere:
        run.open_only = False
    with claimed(out, recipe, recipe_file, overwrite=False):
        return run, mentor_stages(run)
