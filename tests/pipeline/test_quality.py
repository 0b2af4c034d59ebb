"""The quality stage: what it measures, beside whom, and that it is made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline.conftest import Listener, artifact_of

from edgekd import pipeline
from edgekd._quality_model import Distillation
from edgekd.distillation_quality import gram, hsic
from edgekd.evaluate import agreement, kl_to, predict
from edgekd.pipeline._quality import _pairs, quality_of
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import network_of, predictions_of
from edgekd.pipeline._watcher import Silent
from edgekd.recipe import Recipe
from edgekd.taps import Tapped

RecipeOf = Callable[..., Recipe]
LOSSES = [
    {"name": "cross_entropy", "weight": 0.1},
    {"name": "kd", "weight": 0.9},
    {"name": "attention", "weight": 1.0, "student_taps": ["layer1", "layer2"], "teacher_taps": ["layer1", "layer2"]},
    {"name": "hint", "weight": 1.0, "student_tap": "layer1", "teacher_tap": "layer1"},
]
CHANGES: dict[str, Any] = {"distill": {"repeats": 2, "losses": LOSSES}}


@pytest.fixture(scope="module")
def distilled(small_recipe: RecipeOf, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    recipe = small_recipe(CHANGES)
    out = tmp_path_factory.mktemp("quality") / "small"
    pipeline.run(recipe, out=out, until="distill")
    return recipe, out


@pytest.fixture(scope="module")
def found(distilled: tuple[Recipe, Path]) -> Distillation:
    return quality_of(artifact_of(distilled[1], "quality"))


def _run(distilled: tuple[Recipe, Path]) -> Run:
    return Run(distilled[0], distilled[1], None, Silent())


def test_every_student_is_measured_the_distilled_ones_first(found: Distillation) -> None:
    names = [one.student for one in found.students]
    assert names == ["student", "student-seed1", "student_alone", "student_alone-seed1"]
    assert (found.n_train, found.n_test) == (216, 80)
    assert found.floor is not None
    assert (found.floor.a, found.floor.b) == ("student_alone", "student_alone-seed1")


def test_numbers_are_those_of_the_kept_predictions(found: Distillation, distilled: tuple[Recipe, Path]) -> None:
    teacher, student = (predictions_of(artifact_of(distilled[1], name)) for name in ("teacher", "student"))
    [fidelity] = found.students[0].teachers
    assert fidelity.teacher == "teacher"
    assert fidelity.agreement == agreement(teacher, student).value
    assert fidelity.kl_test == pytest.approx(kl_to(teacher, student))
    assert fidelity.gap is not None
    assert fidelity.teacher_accuracy is not None
    assert fidelity.gap.difference == pytest.approx(fidelity.teacher_accuracy - found.students[0].accuracy)
    assert (fidelity.gap.a, fidelity.gap.b) == ("student", "teacher")
    assert fidelity.teacher_parameters == artifact_of(distilled[1], "teacher").manifest.metrics["parameters"]


def test_training_data_is_seen_as_it_is_and_compared_layer_by_layer(
    found: Distillation, distilled: tuple[Recipe, Path]
) -> None:
    """The same numbers from one batch of all training samples in their own order."""
    run = _run(distilled)
    images = run.data.preprocessing.normalise(run.data.train.images(torch.arange(len(run.data.train))))
    labels = run.data.train.labels
    outputs, logits = {}, {}
    for name, settings in (("teacher", run.recipe.teacher), ("student", run.recipe.student)):
        network = Tapped(network_of(run, settings, artifact_of(distilled[1], name)), ["layer1", "layer2"]).eval()
        with torch.no_grad():
            result = network(images)
        outputs[name] = [one.numpy() for one in result]
        logits[name] = predict(lambda inputs, known=result[0]: known, [(images, labels, None)])
    [fidelity] = found.students[0].teachers
    assert fidelity.kl_train == pytest.approx(kl_to(logits["teacher"], logits["student"]), rel=1e-4)
    layers = {(one.student_layer, one.teacher_layer): one.cka for one in fidelity.layers}
    assert list(layers) == [("logits", "logits"), ("layer1", "layer1"), ("layer2", "layer2")]  # each pair once
    for name, ours, theirs in zip(layers, outputs["student"], outputs["teacher"], strict=True):
        x, y = gram(ours), gram(theirs)
        assert layers[name] == pytest.approx(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)), rel=1e-4)


def test_report_has_the_section_in_every_form(distilled: tuple[Recipe, Path], found: Distillation) -> None:
    report = pipeline.open_report(distilled[1])
    assert report.distillation == found
    assert 'id="distillation"' in (distilled[1] / "report.html").read_text(encoding="utf-8")
    assert "Similarity of layers" in (distilled[1] / "report.md").read_text(encoding="utf-8")


def test_stage_is_made_once_and_again_when_a_student_is_another(
    distilled: tuple[Recipe, Path], small_recipe: RecipeOf, tmp_path: Path
) -> None:
    out = shutil.copytree(distilled[1], tmp_path / "small")
    listener = Listener()
    pipeline.run(distilled[0], out=out, until="distill", watcher=listener)
    assert ("quality", True) in listener.stages
    listener = Listener()
    once = small_recipe({"distill": {**CHANGES["distill"], "repeats": 1}})
    pipeline.run(once, out=out, until="distill", watcher=listener)
    assert listener.made == ["quality"]
    again = pipeline.open_report(out).distillation
    assert again is not None
    assert again.floor is not None
    assert (again.floor.a, again.floor.b) == ("student", "student_alone")


def test_later_stages_open_when_the_quality_is_not_there(
    finished: pipeline.RunResult, copied: Path, small_recipe: RecipeOf
) -> None:
    shutil.rmtree(artifact_of(copied, "quality").path)
    listener = Listener()
    result = pipeline.run(small_recipe(), out=copied, until="train", watcher=listener)
    assert listener.made == []
    assert result.report.distillation is None
    assert [rung.rung for rung in result.report.ladder] == [rung.rung for rung in finished.report.ladder]


def test_without_a_student_alone_there_is_no_floor(small_recipe: RecipeOf, tmp_path: Path) -> None:
    recipe = small_recipe({"distill": {"baseline": False, "train": {"epochs": 1}}, "teacher": {"train": {"epochs": 1}}})
    result = pipeline.run(recipe, out=tmp_path / "out", until="distill")
    assert result.report.distillation is not None
    assert result.report.distillation.floor is None
    assert "Floor: not known" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_second_teacher_has_rows_and_layers_of_its_own(small_recipe: RecipeOf, tmp_path: Path) -> None:
    losses = [*LOSSES[:2], {**LOSSES[2], "teacher_taps": ["layer1", "2:layer2"]}]
    one = {"train": {"epochs": 1, "batch_size": 32, "lr": 0.02}}
    changes = {
        "teacher": one,
        "teachers": [{"model": "tiny", "width": 5, **one}],
        "distill": {"losses": losses, "baseline": False, **one},
    }
    result = pipeline.run(small_recipe(changes), out=tmp_path / "out", until="distill")
    assert result.report.distillation is not None
    [student] = result.report.distillation.students
    layers = {
        fidelity.teacher: [(layer.student_layer, layer.teacher_layer) for layer in fidelity.layers]
        for fidelity in student.teachers
    }
    assert layers == {
        "teacher": [("logits", "logits"), ("layer1", "layer1")],
        "teacher-2": [("logits", "logits"), ("layer2", "layer2")],
    }


def test_losses_without_a_partner_for_every_layer_give_no_pairs(
    distilled: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.losses.attention import Attention
    from edgekd.losses.hint import Hint

    monkeypatch.setattr(Attention, "teacher_taps", lambda self: ("layer1",))
    monkeypatch.setattr(Hint, "teacher_taps", lambda self: ("3:layer1",))  # of a teacher that is not there
    assert _pairs(_run(distilled), 1) == [[]]


def test_method_without_a_teacher_pairs_nothing(small_recipe: RecipeOf, tmp_path: Path) -> None:
    recipe = small_recipe({"distill": {"method": "alone", "losses": LOSSES}})
    assert _pairs(Run(recipe, tmp_path, None, Silent()), 1) == [[]]


def test_predictions_of_a_perfect_split_have_no_temperature(found: Distillation) -> None:
    """Synthetic patterns are easy: whatever the fit gave, the record says it in both columns or in none."""
    for one in found.students:
        assert (one.calibration.temperature is None) == (one.calibration.nll_scaled is None)
        assert one.calibration.n_val == 24
