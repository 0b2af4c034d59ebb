"""Every target ships a real int8 network: accepted, fused, and equal to its torch program; found by discovery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from odd_networks import images, odd_network
from torch.fx import GraphModule

from edgekd.calibration.minmax import MinMax
from edgekd.catalog import CATALOGS
from edgekd.export import INPUT, golden_vectors, metadata, model_spec, onnx_from_torch, save_onnx
from edgekd.quantize import calibrate, convert, prepare, sqnr_db
from edgekd.spec import ModelSpec, Preprocessing
from edgekd.targets._base import Target

NAMES = CATALOGS["targets"].names()
# float16 between int8 operators moves a code now and then; the others compute the very codes of the torch program
FAITHFUL_DB = {"tensorrt": 25.0}
SPEC = model_spec(
    Preprocessing(size=[16, 16], channels=3, mean=[0.5] * 3, std=[0.25] * 3), [f"class {index}" for index in range(10)]
)


@dataclass(frozen=True)
class Shipped:
    """One target's files and the programs they came from."""

    target: Target
    program: GraphModule
    int8: Path
    float: Path


@pytest.fixture(scope="module", params=NAMES)
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    target: Target = CATALOGS["targets"].load(request.param).member()
    network = odd_network("InPlace")
    # 7-bit weights: this test must hold on processors without VNNI too
    graph = prepare(
        network, images(4), numerics=target.numerics, calibrator=MinMax(MinMax.Options()), reduce_range=True
    )
    calibrate(graph, [images(64, seed=1)])
    program = convert(graph, images(4), numerics=target.numerics)
    folder = tmp_path_factory.mktemp(request.param)
    notes = metadata(SPEC, {"student_id": "abc"})
    paths = []
    for name, module, int8 in (("model.onnx", program, True), ("float.onnx", network, False)):
        model = onnx_from_torch(module, images(2), target=target, opset=20, int8=int8, metadata=notes)
        paths.append(save_onnx(model, folder / name))
    return Shipped(target, program, *paths)


def test_catalog_has_the_targets_of_the_design() -> None:
    assert {"onnxruntime_x86", "onnxruntime_arm", "tensorrt"} <= set(NAMES)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_file_agrees_with_its_torch_program_whatever_the_batch(shipped: Shipped, batch: int) -> None:
    inputs = images(batch, seed=2)
    with torch.no_grad():
        expected = shipped.program(inputs)
    with shipped.target.reference(shipped.int8) as runner:
        found = torch.from_numpy(next(iter(runner.run({INPUT: inputs.numpy()}).values())))
    assert sqnr_db(expected, found) > FAITHFUL_DB.get(shipped.target.name, 45.0)


def test_every_operator_that_can_be_int8_is(shipped: Shipped) -> None:
    if (missing := shipped.target.missing()) is not None:
        pytest.skip(missing)
    audit = shipped.target.audit(shipped.int8)
    assert audit.quantizable > 3
    assert audit.coverage == 1.0, audit.islands


def test_float_file_is_an_audit_failure(shipped: Shipped) -> None:
    if (missing := shipped.target.missing()) is not None:
        pytest.skip(missing)
    audit = shipped.target.audit(shipped.float)
    assert audit.coverage < 1.0
    assert all(island.cause and island.remedy for island in audit.islands)


def test_file_tells_labels_and_preprocessing_and_no_path(shipped: Shipped, repository: Path) -> None:
    model = onnx.load(shipped.int8)
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert Preprocessing.model_validate_json(notes["edgekd.preprocessing"]) == SPEC.preprocessing
    assert notes["edgekd.labels"].startswith('["class 0"')
    assert notes["edgekd.student_id"] == "abc"
    content = shipped.int8.read_bytes()
    for path in (str(repository), "site-packages", str(Path.home())):
        assert path.encode() not in content
    assert model.ir_version <= 9


def test_golden_vectors_replay(shipped: Shipped, tmp_path: Path) -> None:
    inputs = images(4, seed=3).numpy()
    with shipped.target.reference(shipped.int8) as runner:
        logits = next(iter(runner.run({INPUT: inputs}).values()))
        path = golden_vectors(inputs, logits, tmp_path / "golden.npz")
        with np.load(path, allow_pickle=False) as kept:
            again = next(iter(runner.run({INPUT: kept["image"]}).values()))
            np.testing.assert_array_equal(again, kept["logits"])


def test_two_exports_give_the_same_bytes(shipped: Shipped) -> None:
    notes = metadata(SPEC, {"student_id": "abc"})
    again = onnx_from_torch(shipped.program, images(2), target=shipped.target, opset=20, int8=True, metadata=notes)
    assert again.SerializeToString(deterministic=True) == shipped.int8.read_bytes()


def test_spec_has_a_dynamic_batch() -> None:
    assert isinstance(SPEC, ModelSpec)
    assert SPEC.inputs[0].shape == ["batch", 3, 16, 16]
    assert SPEC.outputs[0].shape == ["batch", 10]
