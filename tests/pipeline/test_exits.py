"""Early exits of a student that was its own teacher: files that run, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pipeline.conftest import artifact_of

from edgekd import pipeline
from edgekd.recipe import Recipe
from edgekd.targets._onnxruntime import OnnxRuntimeRunner


def test_every_exit_is_a_file_that_runs_and_holds_its_part_only(
    small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    options = {"taps": ["stem", "layer1"], "deepest_tap": "layer2"}
    recipe = small_recipe({"distill": {"method": "own_teacher", "method_options": options, "baseline": False}})
    result = pipeline.run(recipe, out=tmp_path / "run", until="distill")
    student = artifact_of(result.out, "student")
    scores = student.manifest.metrics["exits"]
    assert set(scores) == {"stem", "layer1"}
    assert all(0 <= score <= 1 for score in scores.values())
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    for tap in scores:
        with OnnxRuntimeRunner(student.file(f"exit-{tap}.onnx")) as runner:
            feeds = {runner.inputs[0].name: np.broadcast_to(images, (3, *runner.inputs[0].shape[1:])).copy()}
            [logits] = runner.run(feeds).values()
        assert logits.shape == (3, 4)
    assert not any(file.startswith("exit-") for file in artifact_of(result.out, "teacher").manifest.files)


@pytest.mark.parametrize("name", ["offline", "mutual"])
def test_other_methods_have_none(small_recipe: Callable[..., Recipe], tmp_path: Path, name: str) -> None:
    recipe = small_recipe({"distill": {"method": name, "baseline": False, "train": {"epochs": 1}}})
    result = pipeline.run(recipe, out=tmp_path / "run", until="distill")
    assert "exits" not in artifact_of(result.out, "student").manifest.metrics
