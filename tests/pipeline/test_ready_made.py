"""Teachers that are not trained here, and students that start as a part of the teacher, from recipe to artifact."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pipeline.conftest import TARGET, Listener, artifact_of, merged

from edgekd import pipeline
from edgekd.errors import MismatchError, ModelFileError, UsageError
from edgekd.pipeline._run import Run
from edgekd.recipe import Recipe
from edgekd.weights import read_weights

Make = Callable[..., Recipe]

SHORT: dict[str, Any] = {
    "teacher": {"train": {"epochs": 1}},
    "distill": {"baseline": False, "train": {"epochs": 1}},
    "quantize": {"mode": "ptq"},
}


@pytest.fixture
def recipe(small_recipe: Make, tmp_path: Path) -> Make:
    """The small recipe, shorter, with a teacher table of its own if one is given; relative paths start here."""

    def make(changes: dict[str, Any] | None = None, *, teacher: dict[str, Any] | None = None) -> Recipe:
        values = small_recipe(merged(SHORT, changes or {}), folder=tmp_path).model_dump(exclude_unset=True)
        if teacher is not None:
            values["teacher"] = teacher
        return Recipe.model_validate(values)

    return make


@pytest.fixture
def carried_out(tmp_path: Path) -> Callable[..., tuple[pipeline.RunResult, Listener]]:
    """Runs a recipe in a folder of its own name, as far as the students."""

    def run(chosen: Recipe, *, until: pipeline.Stage = "distill") -> tuple[pipeline.RunResult, Listener]:
        watcher = Listener()
        place = tmp_path / "recipe.toml"
        return pipeline.run(
            chosen, out=tmp_path / "out", recipe_file=place, until=until, overwrite=True, watcher=watcher
        ), watcher

    return run


def write_onnx(path: Path, *, seed: int = 0) -> np.ndarray:
    """A linear teacher of 8x8 grey images in 4 classes; returns its weights."""
    weights = np.random.default_rng(seed).standard_normal((64, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "linear", [images], [logits], [numpy_helper.from_array(weights, "weights")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return weights


def answers(run: Run, weights: np.ndarray, split: str) -> np.ndarray:
    """The linear teacher's logits for a split."""
    samples = getattr(run.data, split)
    images = run.data.preprocessing.normalise(samples.images(torch.arange(len(samples))))
    return (images.flatten(1) @ torch.from_numpy(weights)).numpy()


def of(chosen: Recipe, folder: Path) -> Run:
    return Run(chosen, folder / "out", folder / "recipe.toml", pipeline.Silent())


def student_weights(out: Path, stage: str = "student") -> dict[str, torch.Tensor]:
    return read_weights(artifact_of(out, stage).file("model.safetensors"))


def test_onnx_teacher_is_not_trained_and_its_content_decides(
    recipe: Make, carried_out: Callable[..., Any], tmp_path: Path
) -> None:
    write_onnx(tmp_path / "teacher.onnx")
    chosen = recipe(teacher={"model": "onnx:teacher.onnx"})
    result, _ = carried_out(chosen)
    teacher = artifact_of(result.out, "teacher")
    assert set(teacher.manifest.files) == {"predictions.npz", "source.json"}
    [rung] = [row for row in result.report.ladder if row.rung == "teacher"]
    assert (rung.parameters, rung.size_bytes, rung.n) == (256, None, 80)
    assert next(row for row in result.report.ladder if row.rung == "student").agreement is not None

    # the same file elsewhere is the same teacher
    shutil.copy(tmp_path / "teacher.onnx", tmp_path / "copy.onnx")
    _, watcher = carried_out(recipe(teacher={"model": "onnx:copy.onnx"}))
    assert watcher.made == []
    write_onnx(tmp_path / "teacher.onnx", seed=1)
    _, watcher = carried_out(chosen)
    assert {"teacher", "student"} <= set(watcher.made)


def test_stored_answers_teach_what_the_teacher_itself_teaches(
    recipe: Make, carried_out: Callable[..., Any], tmp_path: Path
) -> None:
    weights = write_onnx(tmp_path / "teacher.onnx")
    asked = recipe(teacher={"model": "onnx:teacher.onnx"})
    result, _ = carried_out(asked)
    expected = student_weights(result.out)
    run = of(asked, tmp_path)
    np.savez(
        tmp_path / "answers.npz",
        logits=answers(run, weights, "train"),
        test_logits=answers(run, weights, "test"),
        true_labels=run.data.train.labels.numpy(),
        test_true_labels=run.data.test.labels.numpy(),
    )
    shutil.rmtree(result.out)
    again, _ = carried_out(recipe(teacher={"model": "stored:answers.npz"}))
    for name, value in student_weights(again.out).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)  # two runtimes, one epoch
    rungs = [{row.rung: row for row in one.report.ladder}["teacher"] for one in (result, again)]
    assert rungs[0].value == rungs[1].value


def test_stored_teacher_without_test_answers_is_no_rung(
    recipe: Make, carried_out: Callable[..., Any], tmp_path: Path
) -> None:
    labels = of(recipe(), tmp_path).data.train.labels.numpy()
    np.savez(tmp_path / "answers.npz", labels=labels)
    chosen = recipe({"data": {"augment": {"crop": 1}}}, teacher={"model": "stored:answers.npz", "confidence": 0.8})
    result, watcher = carried_out(chosen)
    assert [row.rung for row in result.report.ladder] == ["student"]
    assert set(artifact_of(result.out, "teacher").manifest.files) == {"source.json"}
    assert any("no test_logits" in message for message in watcher.messages)
    assert any("data.augment (crop) shows the student changed ones" in message for message in watcher.messages)
    assert not any("in the order of the training split" in message for message in watcher.messages)


def test_stored_rows_of_other_samples_are_noticed(
    recipe: Make, carried_out: Callable[..., Any], tmp_path: Path
) -> None:
    chosen = recipe(teacher={"model": "stored:answers.npz"})
    labels = of(recipe(), tmp_path).data.train.labels.numpy()
    for arrays, message in (
        ({"labels": np.resize(labels, 240)}, "answers for 240 training samples, this run's training split has 216"),
        (
            {"labels": labels, "test_logits": np.zeros((3, 4))},
            "answers for 3 test samples, this run's test split has 80",
        ),
        ({"labels": labels, "true_labels": labels[::-1]}, "true labels are not those of this run's training split"),
    ):
        np.savez(tmp_path / "answers.npz", **arrays)
        with pytest.raises(MismatchError, match=message):
            carried_out(chosen)
    np.savez(tmp_path / "answers.npz", labels=(labels + 1) % 4)
    _, watcher = carried_out(chosen, until="train")
    assert any("true class of 0 of 216 training samples" in message for message in watcher.messages)


def test_black_box_is_asked_only_with_leave(recipe: Make, carried_out: Callable[..., Any], tmp_path: Path) -> None:
    code = (
        "import numpy as np\ndef ask(images):\n    return np.stack([images.mean((1, 2, 3)) * k for k in range(4)], 1)\n"
    )
    (tmp_path / "service_of_mine.py").write_text(code)
    teacher = {"model": "black_box:service_of_mine:ask"}
    with pytest.raises(UsageError, match="allow_user_code = true"):
        carried_out(recipe(teacher=teacher))
    allowed = recipe({"allow_user_code": True}, teacher=teacher)
    result, _ = carried_out(allowed)
    assert "teacher" in [row.rung for row in result.report.ladder]
    _, watcher = carried_out(allowed)
    assert watcher.made == []
    (tmp_path / "service_of_mine.py").write_text(code + "# changed\n")
    _, watcher = carried_out(allowed)
    assert {"teacher", "student"} <= set(watcher.made)


def test_program_of_torch_export_is_loaded_only_with_leave(recipe: Make, carried_out: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="can run code of your own"):
        carried_out(recipe(teacher={"model": "exported:teacher.pt2"}))
    with pytest.raises(ModelFileError, match=r"teacher.pt2 does not exist"):
        carried_out(recipe({"allow_user_code": True}, teacher={"model": "exported:teacher.pt2"}))


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (
            {"model": "onnx:teacher.onnx", "train": {"epochs": 2}},
            {},
            "teacher.train: 'onnx:teacher.onnx' is ready-made, it is neither trained nor loaded.* Remove train",
        ),
        ({"model": "onnx:teacher.onnx", "weights": "a", "train": {}}, {}, "Remove train and weights"),
        (
            None,
            {"model": "onnx:teacher.onnx"},
            "student.model = 'onnx:teacher.onnx' is ready-made and cannot be trained",
        ),
        ({"model": "from_teacher", "width": 0.5}, {}, "teacher.model = 'from_teacher' starts as a part"),
        (None, {"model": "from_teacher", "width": 0.5, "weights": "a"}, "an assistant, without weights"),
        ({"model": "tiny", "weights": "teacher"}, {}, r"teacher.weights = 'teacher' is for students.*\./teacher"),
        ({"model": "onnx:teacher.onnx"}, {"model": "tiny", "weights": "teacher"}, "ready-made and has no weights"),
        ({"model": "onnx:teacher.onnx"}, {"model": "from_teacher", "width": 0.5}, "Nothing can be made out of"),
        (
            None,
            {"model": "tiny", "width": 4, "weights": "teacher"},
            r"differs from 'tiny': tensor 'stem.0.weight' is \[4, 1, 3, 3\] and \[6, 1, 3, 3\]",
        ),
    ],
)
def test_a_recipe_is_refused_before_any_work_when_a_role_does_not_fit(
    recipe: Make,
    carried_out: Callable[..., Any],
    tmp_path: Path,
    teacher: dict[str, Any] | None,
    student: dict[str, Any],
    message: str,
) -> None:
    write_onnx(tmp_path / "teacher.onnx")
    values = recipe(teacher=teacher).model_dump(exclude_unset=True)
    chosen = Recipe.model_validate(values | ({"student": student} if student else {}))
    with pytest.raises(UsageError, match=message):
        carried_out(chosen)
    assert list((tmp_path / "out").glob("teacher-*")) == []


def test_check_tells_what_a_ready_made_teacher_weighs(recipe: Make, tmp_path: Path) -> None:
    write_onnx(tmp_path / "teacher.onnx")
    place = tmp_path / "recipe.toml"
    plan = pipeline.check(recipe(teacher={"model": "onnx:teacher.onnx"}), recipe_file=place, out=tmp_path / "out")
    assert plan["parameters"]["teacher"] == 256


def test_student_made_out_of_the_teacher_is_quantized_and_found_again(
    recipe: Make, carried_out: Callable[..., Any]
) -> None:
    pytest.importorskip("torch_pruning", reason="a width needs 'torch_pruning'. Install edgekd[pruning].")
    values = recipe({"distill": {"baseline": True}}).model_dump(exclude_unset=True)
    values["teacher"] |= {"width": 16}
    values["student"] = {"model": "from_teacher", "width": 0.5}
    chosen = Recipe.model_validate(values)
    result, _ = carried_out(chosen, until="quantize")
    teacher = artifact_of(result.out, "teacher")
    assert student_weights(result.out)["stem.0.weight"].shape == (8, 1, 3, 3)
    # also the one without a teacher starts as a part of it
    assert [link.id for link in artifact_of(result.out, "student_alone").manifest.parents] == [teacher.id]
    assert f"int8_ptq-{TARGET}" in [row.stage for row in result.report.stages]
    _, watcher = carried_out(chosen, until="quantize")
    assert watcher.made == []


def test_quantized_teacher_starts_from_the_teacher(recipe: Make, carried_out: Callable[..., Any]) -> None:
    values = recipe({"quantize": {"mode": "qat"}, "distill": {"baseline": True}}).model_dump(exclude_unset=True)
    values["student"] = {"model": "tiny", "width": 6, "weights": "teacher"}
    # a rate at which nothing moves: what comes out is what it started from
    values["distill"]["train"] |= {"lr": 1e-12}
    result, _ = carried_out(Recipe.model_validate(values), until="quantize")
    teacher, student, alone = (student_weights(result.out, name) for name in ("teacher", "student", "student_alone"))
    for name in teacher:
        if "running" not in name and "tracked" not in name:  # statistics of batches follow the batches
            torch.testing.assert_close(student[name], teacher[name])
            torch.testing.assert_close(alone[name], teacher[name])
    made = artifact_of(result.out, "teacher").id
    assert made in [link.id for link in artifact_of(result.out, "student_alone").manifest.parents]
    assert f"int8-{TARGET}" in [row.stage for row in result.report.stages]


def test_born_again_student_is_another_network_of_the_same_kind(recipe: Make, carried_out: Callable[..., Any]) -> None:
    values = recipe().model_dump(exclude_unset=True)
    values["student"] = {"model": "tiny", "width": 6}
    result, _ = carried_out(Recipe.model_validate(values))
    teacher, student = (student_weights(result.out, name) for name in ("teacher", "student"))
    assert {name: value.shape for name, value in teacher.items()} == {n: v.shape for n, v in student.items()}
    assert not torch.equal(teacher["fc.weight"], student["fc.weight"])
