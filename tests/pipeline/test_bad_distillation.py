"""What a recipe can ask for that no distillation can do: one clear error, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import pipeline
from edgekd.errors import EdgeKDError, MismatchError, RecipeError, UsageError, WeightsError
from edgekd.recipe import Recipe

RecipeOf = Callable[..., Recipe]
LABELS = {"name": "cross_entropy", "weight": 0.1}


def losses(*terms: dict[str, Any]) -> dict[str, Any]:
    return {"distill": {"losses": [LABELS, *terms]}}


def refused(recipe: Recipe, kind: type[EdgeKDError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        pipeline.check(recipe)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_tap_that_is_not_there_names_the_nearest(small_recipe: RecipeOf) -> None:
    wrong = {"name": "similarity_preserving", "student_taps": ["layer3"], "teacher_taps": ["layer1"]}
    refused(small_recipe(losses(wrong)), UsageError, "no module 'layer3'", "Did you mean 'layer")
    wrong = {"name": "pkt", "student_tap": "layer1", "teacher_tap": "2:layer1"}
    refused(small_recipe(losses(wrong)), UsageError, "is of teacher 2, but there is only one")


def test_layers_that_cannot_be_joined_are_named_on_both_sides(small_recipe: RecipeOf) -> None:
    fsp = {"name": "fsp", "student_taps": ["layer1", "layer2"], "teacher_taps": ["layer1", "layer2"]}
    refused(small_recipe(losses(fsp)), MismatchError, "student", "teacher", "layer1")
    attention = {"name": "attention_maps", "student_taps": ["layer1"], "teacher_taps": ["layer1"]}
    refused(small_recipe(losses(attention)), MismatchError, "layer1")


def test_a_layer_map_out_of_range_says_how_many_there_are(small_recipe: RecipeOf) -> None:
    mapped = {
        "name": "hidden_states",
        "student_taps": ["layer{}"],
        "teacher_taps": ["layer{}"],
        "student_layers": 2,
        "teacher_layers": 2,
        "layer_map": [0, 5],
    }
    with pytest.raises(RecipeError, match="5"):
        small_recipe(losses(mapped))


@pytest.mark.parametrize(
    ("term", "key"),
    [
        ({"name": "kd", "tau": 0.0}, "tau"),
        ({"name": "dkd", "tau": -1.0}, "tau"),
        ({"name": "dist", "weight": -0.5}, "weight"),
        ({"name": "mgd", "student_taps": ["a"], "teacher_taps": ["b"], "masked": 1.5}, "masked"),
    ],
)
def test_values_outside_their_range_name_the_key(small_recipe: RecipeOf, term: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError, match=rf"distill\.losses\.1\.{key}"):
        small_recipe(losses(term))


def test_a_loss_that_needs_labels_refuses_data_without(small_recipe: RecipeOf, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 4
    train = np.where(rng.random(60) < 0.5, -1, labels)
    images = rng.integers(0, 255, (60, 8, 8), dtype=np.uint8)
    path = tmp_path / "half.npz"
    np.savez(path, images=images, labels=train, test_images=images, test_labels=labels)
    data = {"name": "npz", "path": str(path), "classes": ["a", "b", "c", "d"]}
    kd_alone = {"losses": [{"name": "kd"}], "baseline": False}
    values = small_recipe({}).model_dump(mode="json") | {"data": data}
    recipe = Recipe.model_validate(values | {"distill": kd_alone})
    assert pipeline.check(recipe)["data"]["classes"] == 4
    refused(Recipe.model_validate(values | losses({"name": "dkd"})), UsageError, "'dkd' needs labels", "kd for example")


def test_one_teacher_missing_of_several_is_named(small_recipe: RecipeOf) -> None:
    missing = {"teachers": [{"model": "tiny", "weights": "nowhere.safetensors"}]}
    refused(small_recipe(missing), WeightsError, "nowhere.safetensors", "does not exist")
    shares = {"distill": {"method_options": {"weighting": "fixed", "shares": [0.5, 0.25, 0.25]}}}
    refused(small_recipe({"teachers": [{"model": "tiny"}], **shares}), UsageError, "3 values for 2 teachers")


def test_assistants_and_their_method_belong_together(small_recipe: RecipeOf) -> None:
    with pytest.raises(RecipeError, match="belong together"):
        small_recipe({"assistants": [{"model": "tiny", "width": 5}]})
    with pytest.raises(RecipeError, match="belong together"):
        small_recipe({"distill": {"method": "assistant"}})


def test_options_of_a_method_are_checked_like_all_others(small_recipe: RecipeOf) -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'peer' in \[distill.method_options\]. Did you mean 'peers'"):
        small_recipe({"distill": {"method": "mutual", "method_options": {"peer": 3}}})
    named = {"distill": {"method": "mutual", "export": "peer9"}}
    refused(small_recipe(named), UsageError, "no network 'peer9'", "Did you mean 'peer1'")


def test_standardised_logits_of_two_classes_are_refused(small_recipe: RecipeOf) -> None:
    two = {"data": {"name": "synthetic", "classes": 2, "samples": 120, "test_samples": 40, "size": [8, 8]}}
    refused(small_recipe({**two, **losses({"name": "kd", "standardize": True})}), MismatchError, "standardize 2 logits")
    refused(small_recipe({**two, **losses({"name": "dkd"})}), MismatchError, "dkd")
