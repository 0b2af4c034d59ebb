"""What `edgekd init` writes: a folder with a recipe that runs as it stands."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from edgekd.artifact import storage_errors
from edgekd.errors import OverwriteRefused
from edgekd.recipe import json_schema

__all__ = ["starter_files", "write_starter"]

RECIPE, SCHEMA, IGNORE = "recipe.toml", "recipe.schema.json", ".gitignore"


def starter_files() -> dict[str, str]:
    """The content of each file, by name; the recipe is the first."""
    recipe = files("edgekd.templates").joinpath(RECIPE).read_text(encoding="utf-8")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **json_schema()}
    return {RECIPE: recipe, SCHEMA: json.dumps(schema, indent=2) + "\n", IGNORE: "runs/\n"}


def write_starter(folder: Path) -> list[Path]:
    """Write the starter files into a folder, which is made if it is not there.

    Returns:
        What was written; the recipe is the first.

    Raises:
        OverwriteRefused: one of the files is there already, or `folder` is a file; nothing was written.
        StorageError: the disk refused.
    """
    if folder.exists() and not folder.is_dir():
        raise OverwriteRefused(f"{folder} is a file. Give the name of a folder.")
    contents = starter_files()
    taken = [name for name in contents if (folder / name).exists()]
    if taken:
        raise OverwriteRefused(f"{folder} has {', '.join(taken)} already. Choose another folder, or remove them first.")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in contents]
