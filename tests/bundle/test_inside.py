"""Preprocessing inside the file: pixels in, the same logits out, and int8 stays int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bundle.conftest import linear
from int8_models import PIXELS, SIZE, content, target

from edgekd.agent.images import prepare
from edgekd.errors import MismatchError, RecipeError
from edgekd.export import model_spec
from edgekd.recipe import parse_recipe
from edgekd.spec import Preprocessing
from edgekd.targets._preprocessing_graph import inside_spec, pixels_of, put_inside, rewrite_inside

GIVEN = Preprocessing(size=[2, 2], channels=1, mean=[0.5], std=[0.25])


def logits_of(model: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": feed})[0])


@pytest.mark.parametrize("value_range", [[0.0, 1.0], [-1.0, 1.0]])
def test_pixels_give_the_logits_of_the_prepared_image(value_range: list[float]) -> None:
    given = GIVEN.model_copy(update={"value_range": value_range})
    images = np.arange(256, dtype=np.uint8).reshape(64, 2, 2, 1)
    prepared = np.concatenate([prepare(image, given.model_dump()) for image in images])
    np.testing.assert_array_equal(logits_of(put_inside(linear(), given), images), logits_of(linear(), prepared))


def test_input_is_named_as_before_and_takes_bytes() -> None:
    made = put_inside(linear(), GIVEN)
    [image] = made.graph.input
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [one.dim_param or one.dim_value for one in image.type.tensor_type.shape.dim] == ["batch", 2, 2, 1]
    spec = inside_spec(model_spec(GIVEN, ["a", "b", "c"]))
    assert (spec.inputs[0].dtype, spec.inputs[0].shape) == ("uint8", ["batch", 2, 2, 1])
    assert linear().graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT  # the original is untouched


def test_model_with_another_input_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"needs a model with one float32 input \(B, 3, 2, 2\)"):
        put_inside(linear(), Preprocessing(size=[2, 2], channels=3, mean=[0.0] * 3, std=[1.0] * 3))
    with pytest.raises(MismatchError, match="Leave it 'outside'"):
        put_inside(put_inside(linear(), GIVEN), GIVEN)


@pytest.mark.parametrize("seed", [0, 1])
def test_pixels_come_back_from_normalised_inputs(seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
    inputs = np.concatenate([prepare(image, PIXELS.model_dump()) for image in images])
    np.testing.assert_array_equal(pixels_of(inputs, PIXELS), images)


@pytest.mark.parametrize("name", ["onnxruntime_x86", pytest.param("onnxruntime_arm", marks=pytest.mark.slow)])
def test_int8_file_stays_int8_and_answers_alike(name: str, tmp_path: Path) -> None:
    source, path = tmp_path / "source.onnx", tmp_path / "model.onnx"
    for file in (source, path):
        file.write_bytes(content("tiny", name))
    rewrite_inside(path, PIXELS)
    images = np.random.default_rng(0).integers(0, 256, (32, SIZE, SIZE, 3)).astype(np.uint8)
    prepared = np.concatenate([prepare(image, PIXELS.model_dump()) for image in images])
    np.testing.assert_array_equal(logits_of(onnx.load(path), images), logits_of(onnx.load(source), prepared))
    before, after = target(name).audit(source), target(name).audit(path)
    assert (after.coverage, after.int8, after.islands) == (1.0, before.int8, ())
    notes = {one.key: one.value for one in onnx.load(path).metadata_props}
    assert notes["edgekd.preprocessing_inside"] == "true"


def test_float_file_answers_alike(tmp_path: Path) -> None:
    source, path = tmp_path / "source.onnx", tmp_path / "model.onnx"
    for file in (source, path):
        file.write_bytes(content("tiny", "onnxruntime_x86", int8=False))
    rewrite_inside(path, PIXELS)
    images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3)).astype(np.uint8)
    prepared = np.concatenate([prepare(image, PIXELS.model_dump()) for image in images])
    np.testing.assert_allclose(
        logits_of(onnx.load(path), images), logits_of(onnx.load(source), prepared), rtol=1e-5, atol=1e-5
    )


def test_other_runtimes_are_refused_before_anything_is_trained() -> None:
    recipe: dict[str, Any] = {
        "name": "x",
        "teacher": {"model": "tiny"},
        "student": {"model": "tiny"},
        "export": {"preprocessing": "inside", "targets": ["onnxruntime_x86", "xnnpack"]},
    }
    with pytest.raises(RecipeError, match="'inside' is for ONNX Runtime's targets; xnnpack takes normalised images"):
        parse_recipe(recipe)
