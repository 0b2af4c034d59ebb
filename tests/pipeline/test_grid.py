"""The grid of a sweep: how it is written, what it makes of a recipe, and everything that can be wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd.errors import RecipeError, UsageError
from edgekd.pipeline._grid import combinations, read_grid
from edgekd.recipe import Recipe

RecipeOf = Callable[..., Recipe]


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("distill.losses.1.tau=1,2.5,4", {"distill.losses.1.tau": [1, 2.5, 4]}),
        ("distill.method=offline,hydra", {"distill.method": ["offline", "hydra"]}),
        ("distill.method = 'offline', 'hydra'", {"distill.method": ["offline", "hydra"]}),
        ("data.augment.flip=true,false", {"data.augment.flip": [True, False]}),
        ("a.b=offline,1,true", {"a.b": ["offline", 1, True]}),
        ('distill.losses=[{name="kd"}],[{name="dkd"}]', {"distill.losses": [[{"name": "kd"}], [{"name": "dkd"}]]}),
        ("a.b=", {"a.b": []}),
    ],
)
def test_values_are_toml_or_plain_words(text: str, grid: dict[str, list[object]]) -> None:
    assert read_grid([text]) == grid


def test_file_holds_lists_and_several_add_up(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text("distill.losses.1.tau = [1.0, 4.0]\n[student]\nwidth = [2, 3]\n")
    assert read_grid([str(file), "distill.method=offline"]) == {
        "distill.losses.1.tau": [1.0, 4.0],
        "student.width": [2, 3],
        "distill.method": ["offline"],
    }


def test_what_is_no_grid_is_told(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    with pytest.raises(UsageError, match=r"sweep\.toml: No such file or directory\. Give a TOML file whose keys hold"):
        read_grid([str(file)])
    file.write_text("a = [")
    with pytest.raises(UsageError, match=r"sweep\.toml: not valid TOML"):
        read_grid([str(file)])
    file.write_text("[distill]\nmethod = 'offline'")
    with pytest.raises(UsageError, match=r"distill\.method must be a list of the values to try, got 'offline'"):
        read_grid([str(file)])
    with pytest.raises(UsageError, match=r"--sweep =1,2: must look like a\.b=1,2,3"):
        read_grid(["=1,2"])
    with pytest.raises(UsageError, match=r"'a\.b' has values already"):
        read_grid(["a.b=1", "a.b=2"])


def test_every_combination_has_its_recipe_the_last_key_changing_fastest(small_recipe: RecipeOf) -> None:
    found = combinations(small_recipe(), {"distill.losses.1.tau": [1.0, 4.0], "student.width": [2, 3]})
    assert [one.changes for one in found] == [
        {"distill.losses.1.tau": tau, "student.width": width} for tau in (1.0, 4.0) for width in (2, 3)
    ]
    assert [(one.recipe.distill.losses[1].options["tau"], one.recipe.student.options["width"]) for one in found] == [
        (1.0, 2),
        (1.0, 3),
        (4.0, 2),
        (4.0, 3),
    ]
    assert found[0].recipe.distill.losses[0] == small_recipe().distill.losses[0]


def test_whole_tables_and_lists_can_be_swept(small_recipe: RecipeOf) -> None:
    losses = [[{"name": "kd", "weight": 1.0}], [{"name": "cross_entropy", "weight": 1.0}]]
    teachers = [{"model": "tiny"}, {"model": "resnet", "depth": 8}]
    found = combinations(small_recipe(), {"distill.losses": losses, "teacher": teachers})
    assert [(one.recipe.distill.losses[0].name, one.recipe.teacher.model) for one in found] == [
        (loss, model) for loss in ("kd", "cross_entropy") for model in ("tiny", "resnet")
    ]


def test_value_that_is_named_twice_is_trained_once(small_recipe: RecipeOf) -> None:
    assert len(combinations(small_recipe(), {"student.width": [2, 2, 3]})) == 2


def test_student_alone_is_always_trained_and_seeds_are_the_recipe_s(small_recipe: RecipeOf) -> None:
    recipe = small_recipe({"distill": {"baseline": False, "repeats": 3}})
    tables = [{"method": "offline", "baseline": False, "repeats": 9}]
    for grid in ({"student.width": [2]}, {"distill": tables}):
        [one] = combinations(recipe, grid)
        assert (one.recipe.distill.baseline, one.recipe.distill.repeats) == (True, 3)


def test_every_problem_of_every_combination_is_told_once(small_recipe: RecipeOf) -> None:
    grid = {"distill.metod": ["a", "b"], "distill.losses.1.tau": [-1.0, 2.0], "distill.losses.7.tau": [1.0]}
    with pytest.raises(RecipeError) as caught:
        combinations(small_recipe(), grid)
    assert caught.value.problems == ("distill.losses.7.tau: '7' is no place in a list of 2; places count from 0",)
    del grid["distill.losses.7.tau"]
    with pytest.raises(RecipeError) as caught:
        combinations(small_recipe(), grid)
    assert len(caught.value.problems) == 2
    assert "unknown key 'metod' in [distill]. Did you mean 'method'?" in caught.value.problems[0]
    assert "distill.losses.1.tau: input should be greater than 0, got -1.0" in caught.value.problems[1]


def test_key_below_a_value_and_unknown_section_are_told(small_recipe: RecipeOf) -> None:
    with pytest.raises(RecipeError, match=r"distill\.method\.name: what 'name' should be in is a value, not a table"):
        combinations(small_recipe(), {"distill.method.name": [1]})
    with pytest.raises(RecipeError, match=r"unknown key 'distil' in \[top level\]. Did you mean 'distill'"):
        combinations(small_recipe(), {"distil.method": ["offline"]})
    with pytest.raises(RecipeError, match="'first' is no place in a list of 2"):
        combinations(small_recipe(), {"distill.losses.first.tau": [1]})


def test_table_that_the_recipe_leaves_out_is_made(small_recipe: RecipeOf) -> None:
    recipe = small_recipe({"assistants": [{"model": "tiny"}], "distill": {"method": "assistant"}})
    [one] = combinations(recipe, {"assistants.0.train.epochs": [2]})
    assert one.recipe.assistants[0].train is not None
    assert one.recipe.assistants[0].train.epochs == 2


@pytest.mark.parametrize("grid", [{}, {"student.width": []}])
def test_empty_grid_is_refused(small_recipe: RecipeOf, grid: dict[str, list[int]]) -> None:
    with pytest.raises(UsageError, match=r"The grid of the sweep is empty.*Give every key at least one value"):
        combinations(small_recipe(), grid)


def test_large_grid_is_refused_unless_confirmed(small_recipe: RecipeOf) -> None:
    grid = {"distill.losses.1.tau": [0.1 * (i + 1) for i in range(15)], "student.width": list(range(1, 15))}
    with pytest.raises(UsageError, match=r"has 210 combinations, more than 200\. .* --max-combinations 210"):
        combinations(small_recipe(), grid)
    assert len(combinations(small_recipe(), grid, most=210)) == 210


@pytest.mark.parametrize("key", ["seed", "name", "data.name", "data.noise", "quantize.lr", "bench.queries"])
def test_key_that_no_distillation_depends_on_is_refused(small_recipe: RecipeOf, key: str) -> None:
    with pytest.raises(UsageError, match=rf"A sweep cannot change '{key}': .* set '{key}' with --set"):
        combinations(small_recipe(), {key: [1]})


@pytest.mark.parametrize("key", ["distill.repeats", "distill.baseline"])
def test_key_that_the_sweep_itself_needs_is_refused(small_recipe: RecipeOf, key: str) -> None:
    with pytest.raises(UsageError, match=f"A sweep cannot change '{key}'"):
        combinations(small_recipe(), {key: [1]})
    assert len(combinations(small_recipe(), {"data.augment.flip": [True, False]})) == 2
