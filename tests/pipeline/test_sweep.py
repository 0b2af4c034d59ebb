"""A sweep: shared stages, the ranking and its numbers, going on after a stop, and what stops it before it starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline.conftest import Listener, hidden

from edgekd import pipeline
from edgekd._repeats import repeats
from edgekd._sweep_model import Sweep, SweepRow
from edgekd.artifact import open_artifact
from edgekd.errors import ArtifactError, OverwriteRefused, TrainingDiverged, UsageError
from edgekd.evaluate import accuracy, agreement, paired
from edgekd.pipeline import _sweep
from edgekd.pipeline._planned import planned_sweep
from edgekd.pipeline._sweep import _ranked, _validation
from edgekd.pipeline._training import history_of, predictions_of
from edgekd.recipe import Recipe

RecipeOf = Callable[..., Recipe]
SHORT: dict[str, Any] = {
    "teacher": {"train": {"epochs": 2, "batch_size": 32, "lr": 0.02}},
    "distill": {"repeats": 2, "train": {"epochs": 2, "batch_size": 32, "lr": 0.02}},
}
GRID = {"distill.losses.1.tau": [1.0, 4.0], "distill.losses.0.weight": [0.1]}


@pytest.fixture(scope="module")
def swept(small_recipe: RecipeOf, tmp_path_factory: pytest.TempPathFactory) -> tuple[pipeline.SweepResult, Listener]:
    listener = Listener()
    recipe = small_recipe(SHORT)
    chosen = pipeline.combinations(recipe, GRID)
    out = tmp_path_factory.mktemp("sweep") / "small"
    return pipeline.sweep(recipe, chosen, out=out, watcher=listener), listener


def test_combinations_share_the_teacher_and_the_students_alone(
    swept: tuple[pipeline.SweepResult, Listener], small_recipe: RecipeOf
) -> None:
    assert swept[1].made == [
        "1/2 teacher",
        "1/2 student_alone",
        "1/2 student",
        "1/2 student_alone-seed1",
        "1/2 student-seed1",
        "2/2 student",
        "2/2 student-seed1",
    ]
    recipes = [one.recipe for one in pipeline.combinations(small_recipe(SHORT), GRID)]
    assert list(planned_sweep(recipes)) == swept[1].made  # what the display was told beforehand
    folders = [path.name.rpartition("-")[0] for path in swept[0].out.glob("*-*")]
    assert sorted(folders) == sorted(
        ["teacher", "student_alone", "student_alone-seed1", *2 * ["student", "student-seed1"]]
    )


def test_student_alone_is_on_top_and_the_rest_is_ranked_by_validation(
    swept: tuple[pipeline.SweepResult, Listener],
) -> None:
    found = swept[0].found
    [alone] = found.baselines
    assert alone.changes == {}
    assert (found.seeds, found.n_val, found.n_test) == (2, 24, 80)
    assert [row.rank for row in found.rows] == [1, 2]
    means = [row.val.mean for row in found.rows if row.val]
    assert means == sorted(means, reverse=True)
    assert {row.changes["distill.losses.1.tau"] for row in found.rows} == {1.0, 4.0}
    assert found.grid == GRID


def test_numbers_are_those_of_the_artifacts(swept: tuple[pipeline.SweepResult, Listener]) -> None:
    result = swept[0]
    [alone] = result.found.baselines
    teacher = predictions_of(open_artifact(next(result.out.glob("teacher-*"))))
    bases = [open_artifact(result.out / name) for name in alone.students]
    for row in result.found.rows:
        made = [open_artifact(result.out / name) for name in row.students]
        histories = [history_of(artifact) for artifact in made]
        val = [history.history[-1].val for history in histories if history is not None]
        assert row.val is not None
        assert row.val.values == val
        assert row.difference == repeats([a - _validation(b) for a, b in zip(row.val.values, bases, strict=True)])
        tests = [predictions_of(artifact) for artifact in made]
        assert row.test is not None
        assert row.test.values == [accuracy(one).value for one in tests]
        assert row.test_paired == paired(("student_alone", predictions_of(bases[0])), ("student", tests[0]))
        assert row.agreement == pytest.approx(sum(agreement(teacher, one).value for one in tests) / 2)


def test_result_is_written_and_reads_back(swept: tuple[pipeline.SweepResult, Listener]) -> None:
    out = swept[0].out
    assert Sweep.model_validate_json((out / "sweep.json").read_bytes()) == swept[0].found
    page = (out / "sweep.md").read_text(encoding="utf-8")
    assert page.index("| alone | no teacher |") < page.index("| 1 | distill.losses.1.tau = ")
    assert all(row["ok"] for row in pipeline.verify(out))
    assert not (out / "report.json").exists()


def test_again_it_makes_nothing_and_says_the_same(
    swept: tuple[pipeline.SweepResult, Listener], small_recipe: RecipeOf, tmp_path: Path
) -> None:
    out = shutil.copytree(swept[0].out, tmp_path / "small")
    listener, recipe = Listener(), small_recipe(SHORT)
    again = pipeline.sweep(recipe, pipeline.combinations(recipe, GRID), out=out, watcher=listener)
    assert listener.made == []
    assert (again.found.rows, again.found.baselines) == (swept[0].found.rows, swept[0].found.baselines)


def test_stopped_in_the_middle_it_goes_on(
    swept: tuple[pipeline.SweepResult, Listener], small_recipe: RecipeOf, tmp_path: Path
) -> None:
    def in_the_second(stage: str, done: int, total: int) -> BaseException | None:
        return KeyboardInterrupt() if stage == "2/2 student" and done == total - 1 else None

    recipe, out = small_recipe(SHORT), tmp_path / "out"
    chosen = pipeline.combinations(recipe, GRID)
    with pytest.raises(KeyboardInterrupt):
        pipeline.sweep(recipe, chosen, out=out, watcher=Listener(in_the_second))
    assert not (out / "sweep.json").exists()
    listener = Listener()
    result = pipeline.sweep(recipe, chosen, out=out, watcher=listener)
    assert listener.made == ["2/2 student", "2/2 student-seed1"]
    assert result.found.rows == swept[0].found.rows
    assert [name for name in hidden(out) if name.endswith(".partial")] == []


def test_run_of_the_recipe_in_the_same_folder_shares_too(
    swept: tuple[pipeline.SweepResult, Listener], small_recipe: RecipeOf, tmp_path: Path
) -> None:
    out = shutil.copytree(swept[0].out, tmp_path / "small")
    listener = Listener()
    losses = [{"name": "cross_entropy", "weight": 0.1}, {"name": "kd", "weight": 0.9, "tau": 1.0}]
    recipe = small_recipe({**SHORT, "distill": {**SHORT["distill"], "losses": losses}})
    pipeline.run(recipe, out=out, until="distill", watcher=listener)
    assert listener.made == ["quality"]


def test_student_that_is_trained_otherwise_has_a_baseline_of_its_own(small_recipe: RecipeOf, tmp_path: Path) -> None:
    recipe = small_recipe(
        {"teacher": SHORT["teacher"], "distill": {"train": {**SHORT["distill"]["train"], "epochs": 1}}}
    )
    grid = {"student.width": [2, 3], "distill.losses.1.tau": [1.0, 4.0]}
    found = pipeline.sweep(recipe, pipeline.combinations(recipe, grid), out=tmp_path / "out").found
    assert [row.changes for row in found.baselines] == [{"student.width": 2}, {"student.width": 3}]
    for row in found.rows:
        assert row.baseline is not None
        assert found.baselines[row.baseline].changes["student.width"] == row.changes["student.width"]
        assert row.difference is not None
        assert row.difference.ci95 is None  # one seed
        assert row.test_paired is not None


def test_diverged_training_is_a_row_and_stops_nothing(
    small_recipe: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _sweep.student_stages

    def sometimes(run: Any, mentors: Any) -> Any:
        if run.recipe.distill.losses[1].options["tau"] == 1.0:
            raise TrainingDiverged("Training diverged at step 3 (epoch 1): loss is not finite.")
        return made(run, mentors)

    monkeypatch.setattr(_sweep, "student_stages", sometimes)
    recipe = small_recipe(SHORT)
    found = pipeline.sweep(recipe, pipeline.combinations(recipe, GRID), out=tmp_path / "out").found
    assert [(row.rank, row.failed is None) for row in found.rows] == [(1, True), (None, False)]
    assert len(found.baselines) == 1
    assert "Diverged" in (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")


def test_what_would_stop_a_combination_stops_the_sweep_before_the_first(small_recipe: RecipeOf, tmp_path: Path) -> None:
    recipe = small_recipe(SHORT)
    losses = [[{"name": "kd"}], [{"name": "hint", "student_tap": "layr1", "teacher_tap": "layer1"}]]
    chosen = pipeline.combinations(recipe, {"distill.losses": losses})
    listener = Listener()
    with pytest.raises(UsageError, match=r"In the combination distill\.losses = .*'layr1'.*Did you mean 'layer1'"):
        pipeline.sweep(recipe, chosen, out=tmp_path / "out", watcher=listener)
    assert listener.stages == []
    with pytest.raises(UsageError, match="In the combination"):
        pipeline.check_sweep(recipe, chosen)


def test_check_says_what_would_be_trained(small_recipe: RecipeOf) -> None:
    recipe = small_recipe(SHORT)
    plan = pipeline.check_sweep(recipe, pipeline.combinations(recipe, GRID))
    assert plan == {
        "name": "small",
        "grid": GRID,
        "combinations": 2,
        "seeds": 2,
        "students": 4,
        "validation_samples": 24,
        "test_samples": 80,
    }
    assert json.dumps(plan)


def test_folder_of_another_recipe_is_refused(
    swept: tuple[pipeline.SweepResult, Listener], small_recipe: RecipeOf, tmp_path: Path
) -> None:
    out = shutil.copytree(swept[0].out, tmp_path / "small")
    other = small_recipe({"name": "other", **SHORT})
    with pytest.raises(OverwriteRefused, match="'small'"):
        pipeline.sweep(other, pipeline.combinations(other, GRID), out=out)


def test_validation_is_that_of_the_network_that_was_kept(
    swept: tuple[pipeline.SweepResult, Listener], tmp_path: Path
) -> None:
    made = open_artifact(swept[0].out / swept[0].found.rows[0].students[0])
    metrics = {"val_accuracy": {"student": 0.5, "peer": 0.75}, "kept": "peer"}
    picked = made.manifest.model_copy(update={"metrics": metrics})
    assert _validation(type(made)(made.path, picked)) == 0.75
    files = {name: code for name, code in made.manifest.files.items() if name != "history.json"}
    with pytest.raises(ArtifactError, match="has no validation accuracy"):
        _validation(type(made)(made.path, made.manifest.model_copy(update={"files": files})))


def test_equal_combinations_keep_the_order_of_the_grid() -> None:
    rows = [SweepRow(changes={"a": i}, val=repeats([value])) for i, value in enumerate((0.5, 0.7, 0.5, 0.7))]
    ranked = _ranked([SweepRow(failed="x"), *rows])
    assert [(row.rank, row.changes.get("a")) for row in ranked] == [(1, 1), (2, 3), (3, 0), (4, 2), (None, None)]
