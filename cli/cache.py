"""`edgekd cache`: the teacher's answers to every view, built beforehand, checked, and looked at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgekd.cli import options
from edgekd.cli.render import Outcome, facts, size
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekd.cache import Summary
    from edgekd.recipe import Recipe

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb and what it can do to the command line."""
    group = typer.Typer(
        rich_markup_mode=None,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=_HELP,
    )
    for name, command in (("build", build), ("verify", verify), ("show", show)):
        group.command(name)(command)
    app.add_typer(group, name="cache")


_HELP = """Keep a teacher's answers; a student then trains as fast as alone.

A recipe with a table [distill.cache] uses them; `edgekd run` builds what is missing. Every one takes --json.

\b
edgekd cache build recipe.toml
edgekd cache verify recipe.toml
edgekd cache show recipe.toml
"""


def build(
    recipe: options.RecipeFile,
    set_values: options.SetValues = None,
    out: options.OptionalOut = None,
    part: options.Part = None,
    epochs: options.Epochs = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Ask the teachers about every view, and keep their answers.

    Goes on where it was stopped. Several may build one cache: in a folder they keep off each other's epochs, for a URL
    give each host a --part.

    \b
    edgekd cache build recipe.toml
    edgekd cache build recipe.toml --part 1/4
    """
    from edgekd.cli.progress import watching

    with watching(quiet=quiet) as watcher:
        from edgekd import pipeline

        loaded = _load(recipe, set_values or [])
        built = pipeline.build_cache(
            loaded,
            out=out or Path("runs") / loaded.name,
            recipe_file=recipe,
            part=_pair(part, "/", "--part", "1/4"),
            epochs=_pair(epochs, "-", "--epochs", "0-9"),
            watcher=watcher,
        )
    return Outcome(as_json, lambda: json.dumps({"caches": built}, indent=2), lambda: [_built(one) for one in built])


def verify(
    recipe: options.RecipeFile,
    set_values: options.SetValues = None,
    out: options.OptionalOut = None,
    samples: options.CheckedSamples = 64,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Check a cache's files, and some answers with the teacher.

    The hash of every file, then some views made again and shown to the teacher. Exit code 3 if anything is damaged,
    2 if an answer is another one.

    \b
    edgekd cache verify recipe.toml
    edgekd cache verify recipe.toml --samples 1000
    """
    from edgekd.cli.progress import watching

    with watching(quiet=quiet) as watcher:
        from edgekd import pipeline

        loaded = _load(recipe, set_values or [])
        found = pipeline.verify_cache(
            loaded, out=out or Path("runs") / loaded.name, recipe_file=recipe, samples=samples, watcher=watcher
        )
    return Outcome(
        as_json, lambda: json.dumps({"ok": True, "caches": found}, indent=2), lambda: [_checked(one) for one in found]
    )


def show(
    place: options.CachePlace,
    set_values: options.SetValues = None,
    out: options.OptionalOut = None,
    as_json: options.AsJson = False,
) -> Outcome:
    """Show whose answers a cache holds, and of which epochs.

    \b
    edgekd cache show recipe.toml
    edgekd cache show s3://bucket/cache
    """
    from edgekd.cli.progress import watching

    with watching(quiet=True):
        if place.endswith(".toml"):
            from edgekd import pipeline

            loaded = _load(Path(place), set_values or [])
            found = pipeline.show_cache(loaded, out=out or Path("runs") / loaded.name, recipe_file=Path(place))
        else:
            from edgekd import cache

            found = cache.summaries(place)
    plain = [one.model_dump(mode="json") for one in found]
    return Outcome(as_json, lambda: json.dumps({"caches": plain}, indent=2), lambda: _shown(found))


def _load(path: Path, overrides: list[str]) -> Recipe:
    from edgekd.recipe import load_recipe

    return load_recipe(path, overrides)


def _pair(text: str | None, between: str, option: str, example: str) -> tuple[int, int] | None:
    if text is None:
        return None
    first, found, second = text.partition(between)
    if not first.isdigit() or not (second.isdigit() if found else option == "--epochs"):
        raise UsageError(f"{option} must be like {example}, got '{text}'.")
    return int(first), int(second if found else first)


def _built(one: dict[str, Any]) -> RenderableType:
    speed = {"views a second": f"{one['rows'] / one['seconds']:.0f}"} if one["rows"] else {}
    return facts(
        f"Cache of {one['role']}",
        {
            "where": one["where"],
            "epochs there": one["epochs"],
            "views asked now": one["rows"],
            **speed,
            "bytes a view": one["bytes_per_view"],
        },
    )


def _checked(one: dict[str, Any]) -> RenderableType:
    return facts(
        f"Cache of {one['role']}: ok",
        {
            "where": one["where"],
            "files as they were built": one["shards"],
            "views asked again": one["rows"],
            "largest difference": f"{one['largest_difference']:.2g}",
        },
    )


def _shown(found: Sequence[Summary]) -> list[RenderableType]:
    return [
        facts(
            "Cache",
            {
                "where": one.where,
                "epochs": _ranges(one.epochs),
                "size": size(one.size_bytes),
                "bytes a view": one.bytes_per_view,
                "of all logits in float32": f"{100 * one.share_of_dense:.0f} %",
                "answers": one.fingerprint.model_dump(mode="json"),
            },
        )
        for one in found
    ]


def _ranges(epochs: Sequence[int]) -> str:
    """Numbers that follow each other, shortened.

    >>> _ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    ends: list[list[int]] = []
    for epoch in epochs:
        if ends and ends[-1][1] == epoch - 1:
            ends[-1][1] = epoch
        else:
            ends.append([epoch, epoch])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends) or "none"
