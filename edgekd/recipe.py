"""The recipe: one TOML file, every key a field of a typed model, every problem reported at once."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from edgekd._settings import (
    AssistantSettings,
    AugmentSettings,
    BenchSettings,
    CacheSettings,
    ComputeSettings,
    CorrectionSettings,
    DataSettings,
    DistillSettings,
    ExportSettings,
    FileSettings,
    LossSettings,
    ModelSettings,
    QuantizeSettings,
    Recipe,
    Section,
    TeacherSettings,
    TensorRTSettings,
    TrainSettings,
    WatchSettings,
)
from edgekd.catalog import CATALOGS, user_code_beside
from edgekd.errors import EdgeKDError, RecipeError, did_you_mean

__all__ = [
    "AssistantSettings",
    "AugmentSettings",
    "BenchSettings",
    "CacheSettings",
    "ComputeSettings",
    "CorrectionSettings",
    "DataSettings",
    "DistillSettings",
    "ExportSettings",
    "FileSettings",
    "LossSettings",
    "ModelSettings",
    "QuantizeSettings",
    "Recipe",
    "TeacherSettings",
    "TensorRTSettings",
    "TrainSettings",
    "WatchSettings",
    "json_schema",
    "load_recipe",
    "parse_recipe",
]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe file.

    Args:
        path: a TOML file.
        overrides: "a.b=value" strings; the value is TOML, or a plain string if it is not.

    Raises:
        RecipeError: everything that is wrong with it, in one error.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(str(path), ["no such file. `edgekd init FOLDER` writes a recipe to start from."]) from error
    except IsADirectoryError as error:
        raise RecipeError(str(path), ["is a folder, not a recipe file."]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), [f"not valid TOML: {error}"]) from error
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror}."]) from error
    return parse_recipe(values, overrides, source=str(path), folder=path.parent)


def parse_recipe(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    source: str = "recipe",
    folder: Path | None = None,
) -> Recipe:
    """Check a recipe given as nested plain values; see `load_recipe`.

    Args:
        values: the recipe's tables.
        overrides: see `load_recipe`.
        source: what messages call it.
        folder: where user code that it allows may lie.

    Raises:
        RecipeError: everything that is wrong with it, in one error.
    """
    table: dict[str, Any] = json.loads(json.dumps(values, default=str))
    problems = [problem for override in overrides if (problem := _override(table, override))]
    if folder is not None and table.get("allow_user_code") is True:
        user_code_beside(folder)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as error:
        problems += [_sentence(Recipe, dict(one)) for one in error.errors()]
    problems += _member_problems(table)
    if problems or recipe is None:
        raise RecipeError(source, list(dict.fromkeys(problems)))
    return recipe


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    return Recipe.model_json_schema()


def _override(values: dict[str, Any], text: str) -> str | None:
    """Apply one "a.b=c" in place; the problem, if there is one."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        return f"--set {text}: must look like a.b=value"
    *parents, last = key.strip().split(".")
    table = values
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            return f"--set {text}: '{parent}' is a value, not a table"
    try:
        table[last] = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = raw
    return None


def _sentence(model: type[BaseModel], error: dict[str, Any], *, within: str = "") -> str:
    """One pydantic error as: where (the model's own place is `within`), what is wrong with which value."""
    location = [part for part in error["loc"] if not (isinstance(part, str) and part in _UNION_TAGS)]
    where = ".".join(str(part) for part in (within, *location) if part != "") or "recipe"
    if error["type"] == "extra_forbidden":
        table = ".".join(str(part) for part in location[:-1])
        valid = _fields_at(model, location[:-1])
        unknown = str(location[-1])
        return f"{where}: unknown key '{unknown}' in [{table or 'top level'}]. {did_you_mean(unknown, valid)}"
    if error["type"] == "missing":
        return f"{where}: missing. Add it to the recipe."
    message = error["msg"].removeprefix("Value error, ")
    # a rule over a whole table says itself which key it is about, and its input is all of the table
    whole = error["type"] == "value_error" and isinstance(error["input"], dict)
    got = "" if whole else f", got {error['input']!r}"
    return f"{where}: {message[0].lower()}{message[1:]}{got}"


_UNION_TAGS = {"bool", "literal['auto']", "int", "str", "float"}


def _fields_at(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        current = next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), current)
    return list(current.model_fields)


def _member_problems(values: Mapping[str, Any]) -> list[str]:
    """Check every table that names a catalog member against that member's own options."""
    allow = values.get("allow_user_code") is True
    problems: list[str] = []
    for catalog, key, table, name, section in _member_tables(values):
        try:
            options = CATALOGS[catalog].options(name, allow_user_code=allow)
        except EdgeKDError as error:
            problems.append(f"{key}: {error}")
            continue
        extra = {k: v for k, v in table.items() if k not in section.model_fields}
        problems += _option_problems(options, extra, key, [*section.model_fields, *options.model_fields])
    for catalog, key, name in _member_names(values):
        if name not in CATALOGS[catalog].names():
            try:
                CATALOGS[catalog].load(name, allow_user_code=allow)
            except EdgeKDError as error:
                problems.append(f"{key}: {error}")
    return problems


def _option_problems(options: type[BaseModel], extra: dict[str, Any], key: str, valid: list[str]) -> list[str]:
    try:
        options.model_validate(extra)
    except ValidationError as error:
        found = []
        for one in error.errors():
            if one["type"] == "extra_forbidden":
                name = str(one["loc"][-1])
                found.append(f"{key}.{name}: unknown key '{name}' in [{key}]. {did_you_mean(name, valid)}")
            else:
                found.append(_sentence(options, dict(one), within=key))
        return found
    return []


def _member_tables(
    values: Mapping[str, Any],
) -> Iterable[tuple[str, str, dict[str, Any], str, type[BaseModel]]]:
    """(catalog, key, table, member name, section model) of each table that carries a member's options."""
    data = values.get("data", {})
    if isinstance(data, dict):
        yield "datasets", "data", data, str(data.get("name", "digits")), DataSettings
    sections: list[tuple[str, type[BaseModel]]] = [("teacher", TeacherSettings), ("student", ModelSettings)]
    for key, section in sections:
        table = values.get(key)
        if isinstance(table, dict) and isinstance(table.get("model"), str):
            yield "models", key, table, table["model"], section
    for key, section in (("teachers", TeacherSettings), ("assistants", AssistantSettings)):
        several = values.get(key)
        for index, table in enumerate(several if isinstance(several, list) else []):
            if isinstance(table, dict) and isinstance(table.get("model"), str):
                yield "models", f"{key}.{index}", table, table["model"], section
    distill = values.get("distill")
    if isinstance(distill, dict) and isinstance(options := distill.get("method_options"), dict):
        yield "methods", "distill.method_options", options, str(distill.get("method", "offline")), Section
    for key in ("distill", "quantize"):
        stage = values.get(key)
        losses = stage.get("losses") if isinstance(stage, dict) else None
        for index, table in enumerate(losses if isinstance(losses, list) else []):
            if isinstance(table, dict) and isinstance(table.get("name"), str):
                yield "losses", f"{key}.losses.{index}", table, table["name"], LossSettings
    quantize = values.get("quantize")
    if isinstance(quantize, dict) and isinstance(quantize.get("calibrator_options"), dict):
        name = str(quantize.get("calibrator", "mse"))
        yield "calibration", "quantize.calibrator_options", quantize["calibrator_options"], name, Section
    corrections = quantize.get("corrections") if isinstance(quantize, dict) else None
    for index, table in enumerate(corrections if isinstance(corrections, list) else []):
        if isinstance(table, dict) and isinstance(table.get("name"), str):
            yield "corrections", f"quantize.corrections.{index}", table, table["name"], CorrectionSettings


def _member_names(values: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """(catalog, key, name) of each key that only names a member."""
    wanted = [
        ("methods", "distill", "method"),
        ("calibration", "quantize", "calibrator"),
        ("devices", "bench", "device"),
    ]
    for catalog, section, key in wanted:
        table = values.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str):
            yield catalog, f"{section}.{key}", table[key]
    export = values.get("export")
    targets = export.get("targets") if isinstance(export, dict) else None
    for index, name in enumerate(targets if isinstance(targets, list) else []):
        if isinstance(name, str):
            yield "targets", f"export.targets.{index}", name
