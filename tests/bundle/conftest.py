"""A bundle small enough to break in a thousand ways: one linear layer whose answers are worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

# the fixtures of a whole small run, for what packs one
from pipeline.conftest import finished as finished
from pipeline.conftest import small_recipe as small_recipe

from edgekd._bundle_golden import tolerance_of, write_golden
from edgekd.bundle import (
    BundleManifest,
    FileRecord,
    Golden,
    ModelEntry,
    Port,
    write_bundle,
)
from edgekd.spec import Preprocessing

WEIGHT = np.asarray([[1, 0, 2], [0, 1, 0], [1, 1, 0], [0, 0, 1]], np.float32)
IMAGES = np.asarray([[[[1, 2], [3, 4]]], [[[0, 1], [0, 2]]]], np.float32)
# image 0: 1*(1,0,2) + 2*(0,1,0) + 3*(1,1,0) + 4*(0,0,1); image 1: 1*(0,1,0) + 2*(0,0,1)
LOGITS = np.asarray([[4, 5, 6], [0, 1, 2]], np.float32)
MODEL, GOLDEN = "models/plain/float32.onnx", "golden/plain-float32.npz"


def linear(weight: np.ndarray = WEIGHT) -> onnx.ModelProto:
    """image (batch, 1, 2, 2) to logits (batch, 3)."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def manifest_of(entry: ModelEntry | None = None, **changes: object) -> BundleManifest:
    """The small bundle's manifest."""
    entry = entry or ModelEntry(
        rung="onnx_float",
        target="plain",
        file=MODEL,
        precision="float32",
        opset=17,
        runtime="onnxruntime",
        inputs=[Port(name="image", dtype="float32", shape=["batch", 1, 2, 2], layout="NCHW")],
        outputs=[Port(name="logits", dtype="float32", shape=["batch", 3])],
        golden=Golden(
            file=GOLDEN,
            samples=2,
            tolerances={"logits": tolerance_of("float32", LOGITS, [])},
            made_with="the hand",
        ),
        artifact="0" * 64,
    )
    whole = BundleManifest(
        name="small",
        created_utc="2026-01-02T03:04:05+00:00",
        edgekd_version="0.1.0",
        models=[entry],
        preprocessing=Preprocessing(size=[2, 2], channels=1, mean=[0.5], std=[0.25]),
        labels=["a", "b", "c"],
        files={},
    )
    return whole.model_copy(update=changes)


def sources(folder: Path, *, logits: np.ndarray = LOGITS) -> dict[str, Path]:
    """The small bundle's files, by their names in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(linear().SerializeToString())
    write_golden(folder / "golden.npz", {"image": IMAGES}, {"logits": logits})
    (folder / "README.md").write_text("# small\n")
    return {MODEL: folder / "model.onnx", GOLDEN: folder / "golden.npz", "README.md": folder / "README.md"}


Maker = Callable[..., Path]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Write a small bundle: a folder, or an archive if the name ends with .zip."""

    def made(name: str = "small", *, logits: np.ndarray = LOGITS, **changes: object) -> Path:
        folder = tmp_path_factory.mktemp("bundle")
        write_bundle(manifest_of(**changes), sources(folder / "sources", logits=logits), folder / name)  # type: ignore[arg-type]
        return folder / name

    return made


@pytest.fixture(scope="session")
def bundle_folder(make: Maker) -> Path:
    """A small bundle that is only read."""
    return make()


@pytest.fixture(scope="session")
def bundle_zip(make: Maker) -> Path:
    """The same as an archive, only read."""
    return make("small.zip")


def record(data: bytes) -> FileRecord:
    """What a manifest says about these bytes."""
    import hashlib

    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
