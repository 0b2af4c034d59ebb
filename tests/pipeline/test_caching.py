"""A run with a teacher cache: the same student as without, however images are changed, and every refusal in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pipeline.conftest import TARGET, Listener, artifact_of, merged

from edgekd import pipeline
from edgekd.errors import ArtifactError, BackendMissing, MismatchError, UsageError
from edgekd.pipeline._caching import unfit
from edgekd.pipeline._qat import augment_of, qat_settings
from edgekd.pipeline._quantize_plan import losses_of
from edgekd.pipeline._run import Run
from edgekd.recipe import Recipe
from edgekd.weights import read_weights

Make = Callable[..., Recipe]

SHORT: dict[str, Any] = {
    "data": {"samples": 200},
    "teacher": {"train": {"epochs": 2}},
    "distill": {"baseline": False, "train": {"epochs": 2}},
}
AUGMENTED = merged(SHORT, {"data": {"augment": {"crop": 1, "flip": True, "cutout": 2, "mixup": 0.4}}})
CACHED: dict[str, Any] = {"distill": {"cache": {}}}
HINT = [
    {"name": "kd", "weight": 1.0},
    {"name": "hint", "weight": 1.0, "student_tap": "layer2", "teacher_tap": "layer2"},
]


def weights(out: Path, stage: str = "student") -> str:
    """The hash of what a stage trained."""
    return artifact_of(out, stage).manifest.files["model.safetensors"]


def trained(
    make: Make, folder: Path, changes: Mapping[str, Any], *, until: pipeline.Stage = "distill", **more: Any
) -> tuple[Path, Listener]:
    """Carry a recipe out in a folder that already has what an earlier one made there."""
    listener = Listener()
    pipeline.run(make(changes, **more), out=folder, watcher=listener, until=until, overwrite=True)
    return folder, listener


@pytest.mark.parametrize(
    "base",
    [
        SHORT,
        AUGMENTED,
        merged(AUGMENTED, {"distill": {"losses": HINT, "cache": {"taps": ["layer2"]}}}),
        merged(SHORT, {"compute": {"precision": "bfloat16"}, "distill": {"cache": {"dtype": "float32"}}}),
        pytest.param(
            merged(AUGMENTED, {"teachers": [{"model": "tiny", "width": 5, "train": {"epochs": 1, "batch_size": 32}}]}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "crop, flip, cutout, mixup", "features", "bfloat16", "two teachers"],
)
def test_the_student_is_the_one_that_the_teacher_itself_teaches(
    small_recipe: Make, tmp_path: Path, base: dict[str, Any]
) -> None:
    online = merged(base, {"distill": {"cache": None}})
    out, _ = trained(small_recipe, tmp_path / "online", {key: value for key, value in online.items() if value})
    other, listener = trained(small_recipe, tmp_path / "cached", merged(CACHED, base))
    assert "cache" in listener.made
    assert weights(out) == weights(other)
    left, right = (artifact_of(one, "student").manifest for one in (out, other))
    assert left.metrics["test_accuracy"] == right.metrics["test_accuracy"]
    assert left.key != right.key  # it was asked for in another way


def test_a_cache_is_filled_once_and_used_by_every_student(small_recipe: Make, tmp_path: Path) -> None:
    base = merged(SHORT, CACHED)
    out, listener = trained(small_recipe, tmp_path / "run", base)
    assert listener.stages[-3:] == [("cache", False), ("student", False), ("quality", False)]
    [folder] = (out / "cache").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("shard*")}
    assert len(before) == 4  # two epochs, each with one shard and its list
    _, again = trained(small_recipe, out, base)
    assert "cache" not in dict(again.stages)  # the student is there: nobody asks
    _, other = trained(small_recipe, out, merged(base, {"student": {"width": 3}}))
    assert ("cache", True) in other.stages
    _, shorter = trained(small_recipe, out, merged(base, {"distill": {"train": {"epochs": 1}}}))
    assert ("cache", True) in shorter.stages
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("shard*")} == before
    _, longer = trained(small_recipe, out, merged(base, {"distill": {"train": {"epochs": 3}}}))
    assert ("cache", False) in longer.stages  # only its third epoch
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("shard*") if path in before} == before


def test_a_changed_recipe_has_another_cache_in_the_run_s_folder(small_recipe: Make, tmp_path: Path) -> None:
    base = merged(SHORT, CACHED)
    out, _ = trained(small_recipe, tmp_path / "run", base)
    trained(small_recipe, out, merged(base, {"data": {"augment": {"flip": True}}}))
    assert len(list((out / "cache").glob("teacher-*"))) == 2


def test_a_cache_in_a_place_of_its_own_is_refused_for_other_answers(small_recipe: Make, tmp_path: Path) -> None:
    place = {"distill": {"cache": {"path": "answers"}}}
    base = merged(SHORT, place)
    recipe_file = tmp_path / "recipe.toml"
    recipe_file.write_text("")
    out = tmp_path / "run"
    pipeline.run(small_recipe(base), out=out, recipe_file=recipe_file, until="distill")
    assert (tmp_path / "answers" / "teacher" / "cache.json").is_file()
    other = small_recipe(merged(base, {"data": {"augment": {"crop": 1}}}))
    with pytest.raises(
        MismatchError, match=r"answers/teacher holds other answers: its augment\.crop is 0, this recipe's is 1"
    ):
        pipeline.run(other, out=tmp_path / "other", recipe_file=recipe_file, until="distill")
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "answers", tmp_path / "moved" / "answers")
    moved = small_recipe(merged(base, {"distill": {"cache": {"path": "moved/answers"}}}))
    listener = Listener()
    pipeline.run(moved, out=out, recipe_file=recipe_file, until="distill", watcher=listener)
    assert listener.made == []  # where a cache lies decides nothing


def test_seeds_share_the_views_and_differ_in_their_start(small_recipe: Make, tmp_path: Path) -> None:
    out, listener = trained(
        small_recipe, tmp_path / "run", merged(merged(AUGMENTED, CACHED), {"distill": {"repeats": 2}})
    )
    assert [name for name, _ in listener.stages].count("cache") == 1
    assert weights(out) != weights(out, "student-seed1")
    assert len(list((out / "cache").iterdir())) == 1


def test_views_repeat_when_fewer_are_kept(small_recipe: Make, tmp_path: Path) -> None:
    kept = merged(AUGMENTED, {"distill": {"cache": {"epochs": 1}}})
    out, _ = trained(small_recipe, tmp_path / "one", kept)
    assert len(list((out / "cache").rglob("epoch-*/shards.json"))) == 1
    online, _ = trained(small_recipe, tmp_path / "online", AUGMENTED)
    assert weights(out) != weights(online)


def test_top_k_trains_too_and_says_so_in_the_key(small_recipe: Make, tmp_path: Path) -> None:
    out, _ = trained(small_recipe, tmp_path / "top", merged(SHORT, {"distill": {"cache": {"top_k": 2}}}))
    asked = artifact_of(out, "student").manifest.recipe["cache"]
    assert asked == {"top_k": 2, "dtype": "float16", "epochs": 2, "taps": [], "seed": 0}
    head = json.loads(next((out / "cache").glob("*/cache.json")).read_text())
    assert head["layout"]["bytes_per_view"] == 4 + 4 + 2 * (2 + 2) + 4


@pytest.mark.slow
def test_an_int8_student_learns_from_the_cache_where_it_sees_the_same(small_recipe: Make, tmp_path: Path) -> None:
    flipped = merged(SHORT, {"data": {"augment": {"crop": 1, "flip": True}}})
    online, _ = trained(small_recipe, tmp_path / "online", flipped, until="quantize")
    cached, listener = trained(small_recipe, tmp_path / "cached", merged(flipped, CACHED), until="quantize")
    assert "The int8 student learns from the cache of the teacher's answers." in listener.messages
    assert weights(online, f"int8-{TARGET}") == weights(cached, f"int8-{TARGET}")


OTHER_VIEWS = {
    "cutout and mixup": (AUGMENTED, "it shows images without cutout and mixup"),
    "more epochs": (merged(SHORT, {"quantize": {"epochs": 3}}), "it is of 3 epochs, and the cache of fewer"),
    "another tap": (merged(SHORT, {"quantize": {"losses": HINT}}), "a loss reads the teacher's 'layer2'"),
    "a lone sample": (
        merged(SHORT, {"quantize": {"batch_size": 179}}),
        "its batches show 179 samples an epoch, and the cache is of 180",
    ),
}


@pytest.mark.parametrize("case", sorted(OTHER_VIEWS))
def test_an_int8_student_that_sees_other_views_says_why(small_recipe: Make, tmp_path: Path, case: str) -> None:
    changes, why = OTHER_VIEWS[case]
    recipe = small_recipe(merged(changes, CACHED))
    run = Run(recipe, tmp_path, None, pipeline.Silent())
    same = augment_of(run) == recipe.data.augment
    assert why in str(unfit(run, losses_of(run), qat_settings(run), same_views=same))


def test_an_int8_student_that_sees_the_same_views_has_no_reason(small_recipe: Make, tmp_path: Path) -> None:
    run = Run(small_recipe(merged(SHORT, CACHED)), tmp_path, None, pipeline.Silent())
    assert unfit(run, losses_of(run), qat_settings(run), same_views=True) is None
    run = Run(small_recipe(SHORT), tmp_path, None, pipeline.Silent())
    assert unfit(run, losses_of(run), qat_settings(run), same_views=True) == "the recipe has no cache"


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(OTHER_VIEWS))
def test_an_int8_student_that_sees_other_views_learns_from_the_teacher(
    small_recipe: Make, tmp_path: Path, case: str
) -> None:
    changes, why = OTHER_VIEWS[case]
    online, _ = trained(small_recipe, tmp_path / "online", changes, until="quantize")
    cached, listener = trained(small_recipe, tmp_path / "cached", merged(changes, CACHED), until="quantize")
    [told] = [one for one in listener.messages if one.startswith("The int8 student")]
    assert "learns from the teacher itself and not from the cache" in told
    assert why in told
    assert weights(online, f"int8-{TARGET}") == weights(cached, f"int8-{TARGET}")


def test_without_build_a_run_stops_and_says_what_to_do(small_recipe: Make, tmp_path: Path) -> None:
    asked = merged(SHORT, {"distill": {"cache": {"build": False}}})
    with pytest.raises(
        UsageError, match=r"lacks 2 of 2 epochs, and distill\.cache\.build is false\. Run `edgekd cache"
    ):
        trained(small_recipe, tmp_path / "run", asked)
    built = pipeline.build_cache(small_recipe(asked), out=tmp_path / "run", epochs=(0, 0))
    assert (built[0]["rows"], built[0]["epochs"]) == (180, 1)
    with pytest.raises(UsageError, match="lacks 1 of 2 epochs"):
        trained(small_recipe, tmp_path / "run", asked)
    pipeline.build_cache(small_recipe(asked), out=tmp_path / "run", part=(2, 2))
    _, listener = trained(small_recipe, tmp_path / "run", asked)
    assert ("cache", True) in listener.stages


@pytest.mark.slow
def test_a_cache_that_went_away_is_filled_again_for_the_int8_student(small_recipe: Make, tmp_path: Path) -> None:
    asked = merged(SHORT, CACHED)
    out, _ = trained(small_recipe, tmp_path / "run", asked)
    shutil.rmtree(out / "cache")
    _, listener = trained(small_recipe, out, asked, until="quantize")
    assert [name for name in listener.made if name != "cache"] == [f"int8_ptq-{TARGET}", f"int8-{TARGET}"]
    assert len(list((out / "cache").rglob("shards.json"))) == 1  # an int8 student of one epoch
    trained(small_recipe, tmp_path / "online", SHORT, until="quantize")
    assert weights(out, f"int8-{TARGET}") == weights(tmp_path / "online", f"int8-{TARGET}")


def test_a_damaged_shard_stops_the_run_and_is_named(small_recipe: Make, tmp_path: Path) -> None:
    asked = merged(SHORT, CACHED)
    out, _ = trained(small_recipe, tmp_path / "run", asked)
    [shard, _] = sorted((out / "cache").rglob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=rf"{shard} is damaged"):
        trained(small_recipe, out, merged(asked, {"student": {"width": 3}}))


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"distill": {"method": "mutual"}}, UsageError, r"the method 'mutual' asks no teacher\. Remove it\."),
        ({"distill": {"method": "last_batch"}}, UsageError, r"the method 'last_batch' asks no teacher"),
        ({"distill": {"cache": {"taps": ["layer9"]}}}, UsageError, "has no module 'layer9' to tap"),
        ({"distill": {"cache": {"taps": ["2:layer2"]}}}, UsageError, r"'2:layer2' is of teacher 2, but there are 1"),
        (
            {"distill": {"losses": HINT}},
            UsageError,
            r"A loss reads 'layer2' of the teacher, which the cache does not keep\. Add 'layer2' to distill\.cache\.t",
        ),
        ({"distill": {"cache": {"path": "gs://x/y"}}}, BackendMissing, r"gs://x/y.* package that is not installed"),
        ({"distill": {"cache": {"path": "zz://x/y"}}}, UsageError, "Protocol not known: zz"),
    ],
)
def test_what_cannot_be_cached_is_refused_before_any_work(
    small_recipe: Make, tmp_path: Path, changes: dict[str, Any], error: type[Exception], told: str
) -> None:
    recipe = small_recipe(merged(merged(SHORT, CACHED), changes))
    with pytest.raises(error, match=told):
        pipeline.check(recipe)
    with pytest.raises(error, match=told):
        pipeline.build_cache(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run" / "cache").exists()


def test_a_method_that_shows_samples_twice_has_no_cache(small_recipe: Make) -> None:
    from edgekd.catalog import CATALOGS

    method = CATALOGS["methods"].load("offline").member
    asked = small_recipe(merged(SHORT, CACHED))
    with pytest.MonkeyPatch.context() as patch:
        # no method of the catalog asks a teacher and shows samples twice
        patch.setattr(method, "sampling", "two_views")
        with pytest.raises(UsageError, match="the method 'offline' shows samples more than once"):
            pipeline.check(asked)


def test_verify_asks_the_teacher_again(small_recipe: Make, tmp_path: Path) -> None:
    asked = small_recipe(merged(AUGMENTED, CACHED))
    pipeline.run(asked, out=tmp_path / "run", until="distill")
    [found] = pipeline.verify_cache(asked, out=tmp_path / "run", samples=40)
    assert (found["role"], found["shards"], found["rows"], found["largest_difference"]) == ("teacher", 2, 40, 0.0)


def test_show_needs_the_table(small_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no table \[distill\.cache\]\. Add one"):
        pipeline.show_cache(small_recipe(SHORT), out=tmp_path)
    with pytest.raises(ArtifactError, match="There is no cache at"):
        pipeline.show_cache(small_recipe(merged(SHORT, CACHED)), out=tmp_path)


def test_parts_and_epochs_that_are_none_are_refused(small_recipe: Make, tmp_path: Path) -> None:
    asked, out = small_recipe(merged(SHORT, CACHED)), tmp_path / "run"
    with pytest.raises(UsageError, match=r"--epochs 0-2: the views of this recipe are the epochs 0 to 1\. Set"):
        pipeline.build_cache(asked, out=out, epochs=(0, 2))
    with pytest.raises(UsageError, match="--part 3/2: the parts are 1/2 to 2/2"):
        pipeline.build_cache(asked, out=out, part=(3, 2))


def test_the_student_is_not_the_teacher_s_bystander(small_recipe: Make, tmp_path: Path) -> None:
    """The cache really teaches: other answers make another student."""
    place = tmp_path / "answers"
    asked = merged(SHORT, {"distill": {"cache": {"path": str(place)}}})
    out, _ = trained(small_recipe, tmp_path / "run", asked)
    from safetensors.torch import load_file, save_file

    for shard in place.rglob("shard-*"):
        tensors = {name: values.clone() for name, values in load_file(shard).items()}
        tensors["logits"] = -tensors["logits"]
        save_file(tensors, shard)
    shutil.rmtree(artifact_of(out, "student").path)
    before = read_weights(artifact_of(out, "teacher").file("model.safetensors"))
    other, listener = trained(small_recipe, out, asked)
    assert ("teacher", True) in listener.stages
    assert before.keys() == read_weights(artifact_of(other, "teacher").file("model.safetensors")).keys()
    fresh, _ = trained(small_recipe, tmp_path / "fresh", merged(SHORT, CACHED))
    assert weights(other) != weights(fresh)
