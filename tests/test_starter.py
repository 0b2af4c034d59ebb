"""starter: a recipe that is valid, a schema that knows it, and nothing overwritten."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from edgekd.errors import OverwriteRefused
from edgekd.recipe import Recipe, load_recipe
from edgekd.starter import starter_files, write_starter


def test_recipe_is_valid_and_points_to_its_schema(tmp_path: Path) -> None:
    recipe, schema, ignore = write_starter(tmp_path / "a" / "b")
    assert recipe.read_text().splitlines()[0] == f"#:schema {schema.name}"
    assert load_recipe(recipe).teacher.model == "resnet"
    assert ignore.read_text() == "runs/\n"


def test_schema_has_every_table_that_the_recipe_uses(tmp_path: Path) -> None:
    contents = starter_files()
    schema = json.loads(contents["recipe.schema.json"])
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(tomllib.loads(contents["recipe.toml"])) <= set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("taken", ["recipe.toml", "recipe.schema.json", ".gitignore"])
def test_nothing_is_written_when_a_file_is_there(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(OverwriteRefused, match=f"has {taken} already"):
        write_starter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OverwriteRefused, match="is a file"):
        write_starter(tmp_path / "x")
