"""What a run says to input that it cannot use: one clear error, before the work, nothing half made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline.conftest import SMALL, Listener, artifact_of, hidden, merged

from edgekd import pipeline
from edgekd.errors import (
    BackendMissing,
    DataError,
    MismatchError,
    RecipeError,
    TrainingDiverged,
    UsageError,
    WeightsError,
)
from edgekd.models.tiny import Tiny
from edgekd.recipe import Recipe, load_recipe, parse_recipe
from edgekd.targets._trt_library import trt_library
from edgekd.weights import read_weights, save_weights

RecipeOf = Callable[..., Recipe]


def refused(recipe: Recipe, out: Path, kind: type[Exception], told: str) -> None:
    """A run that must fail before its first stage, and leave no artifact."""
    listener = Listener()
    with pytest.raises(kind, match=told):
        pipeline.run(recipe, out=out, watcher=listener)
    assert listener.stages == []
    assert not list(out.glob("*/manifest.json"))
    with pytest.raises(kind, match=told):
        pipeline.check(recipe, out=out)


@pytest.fixture(scope="module")
def weights(finished: pipeline.RunResult) -> Path:
    """The weights of the finished run's teacher, beside its manifest."""
    return artifact_of(finished.out, "teacher").file("model.safetensors")


def having_teacher(path: Path) -> dict[str, Any]:
    return {"teacher": {"weights": str(path)}}


def test_teacher_from_a_file_is_the_teacher_it_was(
    finished: pipeline.RunResult, small_recipe: RecipeOf, weights: Path, tmp_path: Path
) -> None:
    result = pipeline.run(small_recipe(having_teacher(weights)), out=tmp_path / "out", until="train")
    assert result.report.ladder[0].value == finished.report.ladder[0].value
    assert result.report.curves == []


def test_teacher_from_a_state_dict_is_taken_too(small_recipe: RecipeOf, weights: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": read_weights(weights)}, tmp_path / "t.pt")
    result = pipeline.run(small_recipe(having_teacher(tmp_path / "t.pt")), out=tmp_path / "out", until="train")
    assert [rung.rung for rung in result.report.ladder] == ["teacher"]


def test_relative_weights_start_at_the_recipe_s_folder(small_recipe: RecipeOf, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "t.safetensors").write_bytes(weights.read_bytes())
    recipe = small_recipe({"teacher": {"weights": "t.safetensors"}})
    pipeline.run(recipe, out=tmp_path / "out", recipe_file=tmp_path / "project" / "r.toml", until="train")


def _missing(source: Path, target: Path) -> None:
    return


def _truncated(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes()[:-100])


def _header_only(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes()[:20])


def _text(source: Path, target: Path) -> None:
    target.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def _pickle(source: Path, target: Path) -> None:
    torch.save(Tiny(Tiny.Options(width=6)).build(4, (1, 8, 8)), target)


def _truncated_torch(source: Path, target: Path) -> None:
    torch.save(read_weights(source), target)
    target.write_bytes(target.read_bytes()[:-500])


def _folder(source: Path, target: Path) -> None:
    target.mkdir()


def _not_a_number(source: Path, target: Path) -> None:
    tensors = read_weights(source)
    tensors["fc.bias"][0] = float("nan")
    save_weights(target, tensors, metadata={})


def _other_classes(source: Path, target: Path) -> None:
    save_weights(target, Tiny(Tiny.Options(width=6)).build(7, (1, 8, 8)), metadata={})


def _other_width(source: Path, target: Path) -> None:
    save_weights(target, Tiny(Tiny.Options(width=8)).build(4, (1, 8, 8)), metadata={})


BROKEN = [
    (_missing, r"t\.weights does not exist. Check the path"),
    (_folder, r"t\.weights is a folder"),
    (_truncated, r"t\.weights is truncated: \d+ bytes"),
    (_header_only, r"t\.weights is truncated: 20 bytes"),
    (_text, r"t\.weights is neither safetensors nor a state dict"),
    (_pickle, r"t\.weights is a pickle of Python objects, and loading it could run code: refused"),
    (_truncated_torch, r"t\.weights is truncated or damaged"),
    (_not_a_number, r"t\.weights holds NaN or infinity:\n  not finite: fc\.bias"),
    (_other_classes, r"(?s)does not fit the model.*fc\.weight: model \[4, 24\], file \[7, 24\]"),
    (_other_width, r"(?s)does not fit the model.*of another shape.*and \d+ more"),
]


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize(("harm", "told"), BROKEN, ids=[harm.__name__.strip("_") for harm, _ in BROKEN])
def test_weights_that_do_not_load_stop_the_run_before_any_training(
    small_recipe: RecipeOf, weights: Path, tmp_path: Path, harm: Callable[[Path, Path], None], told: str, side: str
) -> None:
    harm(weights, tmp_path / "t.weights")
    changes = {side: {"model": "tiny", "width": 6, "weights": str(tmp_path / "t.weights")}}
    refused(small_recipe(changes), tmp_path / "out", WeightsError, told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"mean": [0.1]}}, r"preprocessing mean: \[0\.1\] and \[0\.\d+\]"),
        (
            {"data": {"size": [12, 12]}},
            r"preprocessing size: \[12, 12\] and \[8, 8\]\n(?s:.*)input shape: \[\[1, 12, 12\]\]",
        ),
        ({"data": {"classes": 5}}, "classes: 5 and 4"),
    ],
)
def test_teacher_of_another_run_with_other_data_names_both_sides(
    small_recipe: RecipeOf, weights: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    recipe = small_recipe(merged(having_teacher(weights), changes))
    refused(recipe, tmp_path / "out", MismatchError, rf"Student and teacher do not fit \(student first\):(?s:.*){told}")


def test_teacher_of_another_run_with_other_labels_names_both_sides(
    small_recipe: RecipeOf, weights: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 4
    np.savez(tmp_path / "d.npz", images=pixels, labels=labels)
    values = small_recipe(having_teacher(weights)).resolved()
    values["data"] = {"name": "npz", "path": str(tmp_path / "d.npz")}
    refused(parse_recipe(values), tmp_path / "out", MismatchError, "label of class 0: '0' and 'pattern 0'")


def test_tap_that_is_not_there_stops_the_run_before_any_training(small_recipe: RecipeOf, tmp_path: Path) -> None:
    losses = [{"name": "hint", "student_tap": "layer1", "teacher_tap": "layer9"}]
    refused(small_recipe({"distill": {"losses": losses}}), tmp_path / "out", UsageError, "no module 'layer9' to tap")
    changes = {"quantize": {"losses": [{"name": "hint", "student_tap": "layer7", "teacher_tap": "layer1"}]}}
    refused(small_recipe(changes), tmp_path / "out", UsageError, "no module 'layer7' to tap")


def test_learning_rate_that_is_too_high_stops_the_stage_and_seals_nothing(
    small_recipe: RecipeOf, tmp_path: Path
) -> None:
    recipe = small_recipe({"teacher": {"train": {"lr": 1e30, "warmup_epochs": 0.0}}})
    with pytest.raises(
        TrainingDiverged, match=r"Training diverged at step \d+ \(epoch \d\): .* Lower the learning rate"
    ):
        pipeline.run(recipe, out=tmp_path / "out")
    assert hidden(tmp_path / "out") == [".checkpoints", ".lock"]
    assert [path.name for path in (tmp_path / "out").glob("[!.]*/")] in ([], ["tensorboard"])


LOSS = """
from edgekd.losses._base import Loss


class Diverging(Loss):
    "Well for an epoch, then not a number."

    family = "response"

    def forward(self, step):
        value = step.student.logits.square().mean()
        return value if step.epoch == 0 else value * float("nan")
"""


def test_loss_that_becomes_nan_is_named_with_its_step_and_the_checkpoint_is_kept(tmp_path: Path) -> None:
    (tmp_path / "loss_that_diverges.py").write_text(LOSS)
    losses = [{"name": "cross_entropy"}, {"name": "loss_that_diverges:Diverging", "weight": 0.1}]
    values = merged(SMALL, {"allow_user_code": True, "distill": {"losses": losses, "baseline": False}})
    out, recipe_file = tmp_path / "out", tmp_path / "r.toml"
    with pytest.raises(TrainingDiverged) as caught:
        pipeline.run(parse_recipe(values, folder=tmp_path), out=out, recipe_file=recipe_file)
    # 216 training samples in batches of 32: seven steps an epoch
    assert "diverged at step 8 (epoch 2): loss term 'loss_that_diverges:Diverging' is nan" in str(caught.value)
    [checkpoint] = (out / ".checkpoints").glob("*.pt")
    assert f"The last checkpoint is kept in {checkpoint}" in str(caught.value)
    assert len(torch.load(checkpoint, weights_only=True)["state"]["course"]["history"]) == 1
    assert [row["path"].split("-")[0] for row in pipeline.verify(out)] == ["teacher"]
    assert hidden(out) == [".checkpoints", ".lock"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Class folders of small pictures, one of which is cut off."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:02}.png")
    broken = tmp_path / "photographs" / "train" / "dog" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    return tmp_path / "photographs"


def recipe_of_photographs(folder: Path, *, skip_broken: bool = False) -> Recipe:
    values = merged(SMALL, {"teacher": {"train": {"epochs": 1, "batch_size": 8}}})
    places = {"path": str(folder / "train"), "test": str(folder / "test")}
    return parse_recipe(
        values | {"data": {"name": "image_folder", "size": [8, 8], "skip_broken": skip_broken, **places}}
    )


def test_broken_photograph_is_named_and_skipped_only_when_asked(photographs: Path, tmp_path: Path) -> None:
    refused(recipe_of_photographs(photographs), tmp_path / "out", DataError, r"dog/03\.png")
    recipe = recipe_of_photographs(photographs, skip_broken=True)
    result = pipeline.run(recipe, out=tmp_path / "out", until="train")
    assert result.report.ladder[0].n == 8


def test_data_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(recipe_of_photographs(tmp_path / "nowhere"), tmp_path / "out", DataError, "nowhere")


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine on which neither TensorRT package is installed: None in sys.modules makes an import fail."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    trt_library.cache_clear()
    yield
    trt_library.cache_clear()


@pytest.mark.usefixtures("without_tensorrt")
def test_required_engine_without_tensorrt_stops_the_run_before_any_training(
    small_recipe: RecipeOf, tmp_path: Path
) -> None:
    export = {"targets": ["tensorrt"], "tensorrt": {"engine": "required"}}
    recipe = small_recipe({"export": export})
    refused(recipe, tmp_path / "out", BackendMissing, r"TensorRT is not installed\. Install edgekd\[tensorrt\]")
    # the verbs before the export need no engine
    assert pipeline.run(recipe, out=tmp_path / "out", until="train").exit_code == 0


@pytest.mark.usefixtures("without_tensorrt")
def test_plan_says_what_an_optional_engine_lacks(small_recipe: RecipeOf) -> None:
    plan = pipeline.check(small_recipe({"export": {"targets": ["tensorrt"]}}))
    assert "edgekd[tensorrt]" in plan["targets"]["tensorrt"]["missing"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the CUDA device that must be missing here")
def test_cuda_that_is_not_there_stops_the_run_before_any_training(small_recipe: RecipeOf, tmp_path: Path) -> None:
    recipe = small_recipe({"compute": {"device": "cuda"}})
    refused(recipe, tmp_path / "out", BackendMissing, "compute.device is 'cuda', but torch finds no CUDA device")


def test_recipe_with_problems_never_becomes_a_run(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('name = "r"\n[teacher]\nmodel = "tiny"\nwidht = 8\n[student]\nmodel = "tiny"\n')
    with pytest.raises(
        RecipeError, match=r"teacher\.widht: unknown key 'widht' in \[teacher\]\. Did you mean 'width'\?"
    ):
        load_recipe(tmp_path / "r.toml")
