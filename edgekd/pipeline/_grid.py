"""The grid of a sweep: keys of a recipe, the values of each, and the recipe of every combination."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from edgekd.errors import RecipeError, UsageError
from edgekd.recipe import Recipe, parse_recipe

__all__ = ["MOST", "Combination", "Grid", "combinations", "read_grid"]

MOST = 200
"""Combinations of one sweep, unless a larger number is confirmed."""

Grid = Mapping[str, Sequence[Any]]
"""Values by dotted key."""

_SWEPT = ("teacher", "teachers", "assistants", "student", "distill", "compute")
_OWN = ("distill.repeats", "distill.baseline")


@dataclass(frozen=True)
class Combination:
    """One point of the grid.

    Args:
        changes: a value for every key.
        recipe: with these values; the student alone is always trained.
    """

    changes: dict[str, Any]
    recipe: Recipe


def read_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """A grid from what the command line was given; keys of several add up.

    Args:
        texts: each "a.b=1,2,3", values in TOML or plain words, or the path of a TOML file whose keys hold lists.

    Raises:
        UsageError: no file, no TOML, a key without a list of values, or twice.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        for key, values in (_written(text) if "=" in text else _read(Path(text))).items():
            if key in grid:
                raise UsageError(f"--sweep {text}: '{key}' has values already. Give all values of a key at once.")
            grid[key] = values
    return grid


def combinations(recipe: Recipe, grid: Grid, *, recipe_file: Path | None = None, most: int = MOST) -> list[Combination]:
    """The recipe of every combination, checked; the last key changes fastest.

    Args:
        recipe: what every combination starts from.
        grid: values by key; a number in a key is a place in a list, `distill.losses.1.tau`.
        recipe_file: where user code lies.
        most: combinations that are not too many.

    Raises:
        UsageError: an empty grid, too many combinations, or a key that does not belong to a distillation.
        RecipeError: everything that is wrong with any combination.
    """
    _check(grid, most)
    folder = recipe_file.parent if recipe_file else None
    found: list[Combination] = []
    problems: list[str] = []
    # a value that is named twice is trained once
    each = [[json.loads(text) for text in dict.fromkeys(map(_text, values))] for values in grid.values()]
    for values in product(*each):
        changes = dict(zip(grid, values, strict=True))
        try:
            found.append(Combination(changes, _changed(recipe, changes, folder)))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError("the sweep", list(dict.fromkeys(problems)))
    return found


def _check(grid: Grid, most: int) -> None:
    empty = [key for key, values in grid.items() if not values]
    if not grid or empty:
        raise UsageError(
            f"The grid of the sweep is empty{': no value for ' + empty[0] if empty else ''}. Give every key at least"
            " one value: --sweep distill.losses.1.tau=1,2,4"
        )
    for key in grid:
        top = key.partition(".")[0]
        known = top in Recipe.model_fields and top not in _SWEPT
        if (known and not key.startswith("data.augment")) or key in _OWN:
            raise UsageError(
                f"A sweep cannot change '{key}': every combination is trained with the same seeds and data, and the"
                f" student alone beside it. It changes {', '.join(_SWEPT)} and data.augment; set '{key}' with --set."
            )
    count = math.prod(len(values) for values in grid.values())
    if count > most:
        raise UsageError(
            f"The grid has {count} combinations, more than {most}. Take values out, or confirm it with"
            f" --max-combinations {count}."
        )


def _changed(recipe: Recipe, changes: Mapping[str, Any], folder: Path | None) -> Recipe:
    table = recipe.resolved()
    problems = [problem for key, value in changes.items() if (problem := _put(table, key.split("."), value, key))]
    if problems:
        raise RecipeError("the sweep", problems)
    made = parse_recipe(table, source="the sweep", folder=folder)
    # a whole [distill] in the grid does not decide about these
    own = {"baseline": True, "repeats": recipe.distill.repeats}
    return made.model_copy(update={"distill": made.distill.model_copy(update=own)})


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def _put(place: Any, path: Sequence[str], value: Any, key: str) -> str | None:
    """Set what a dotted key names, in place; the problem, if there is one."""
    part, rest = path[0], path[1:]
    index: Any = part
    if isinstance(place, list):
        if not part.isdigit() or int(part) >= len(place):
            return f"{key}: '{part}' is no place in a list of {len(place)}; places count from 0"
        index = int(part)
    elif not isinstance(place, dict):
        return f"{key}: what '{part}' should be in is a value, not a table"
    if not rest:
        place[index] = value
        return None
    if isinstance(place, dict) and place.get(index) is None:
        place[index] = {}
    return _put(place[index], rest, value, key)


def _written(text: str) -> dict[str, list[Any]]:
    key, _, raw = text.partition("=")
    if not key.strip():
        raise UsageError(f"--sweep {text}: must look like a.b=1,2,3, or be a TOML file.")
    try:
        return {key.strip(): list(tomllib.loads(f"values = [{raw}]")["values"])}
    except tomllib.TOMLDecodeError:
        return {key.strip(): [_value(part.strip()) for part in raw.split(",") if part.strip()]}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not valid TOML: {error}"
        raise UsageError(f"--sweep {path}: {reason}. Give a TOML file whose keys hold lists, or a.b=1,2,3.") from error
    grid: dict[str, list[Any]] = {}
    _flatten(table, "", grid, path)
    return grid


def _flatten(table: Mapping[str, Any], prefix: str, grid: dict[str, list[Any]], path: Path) -> None:
    for key, value in table.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{key}.", grid, path)
        elif isinstance(value, list):
            grid[f"{prefix}{key}"] = value
        else:
            raise UsageError(f"{path}: {prefix}{key} must be a list of the values to try, got {value!r}.")
