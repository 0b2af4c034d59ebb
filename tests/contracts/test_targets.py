"""Every target: its file is valid, agrees with the program it came from, is fully int8 by its own audit, and runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from int8_models import FAMILIES, content, exported, images, program, program_logits, sqnr_db, target
from odd_networks import ODD, odd_network
from odd_networks import images as odd_images

from edgekd import quantize
from edgekd.calibration.mse import MeanSquaredError
from edgekd.catalog import CATALOGS
from edgekd.export import INPUT, OUTPUT, save_onnx
from edgekd.recipe import ExportSettings
from edgekd.spec import Options, Runner
from edgekd.targets._base import Audit, Target

NAMES = CATALOGS["targets"].names()
ONNX = [name for name in NAMES if target(name).suffix == ".onnx"]
RUNTIMES = [name for name in NAMES if name.startswith("onnxruntime")]
# whose files nothing but their own runtime can run
OWN_RUNTIME = ("openvino", "xnnpack")
# a float16 rest moves codes that lie near a border, and XNNPACK adds with rounded multipliers; the others' integers
# match torch's floats almost always
FEWEST_DB = {"tensorrt": 30.0, "xnnpack": 40.0}
FEWEST_AGREEING = {"tensorrt": 0.99}
FAST = [*(("tiny", name) for name in NAMES), ("resnet", "onnxruntime_x86")]
SLOW = [(family, name) for family in FAMILIES for name in NAMES if (family, name) not in FAST]
PAIRS = [*FAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]
# what a few steps of training do not make robust: its argmax hangs on single codes
UNSTEADY = {"mobilenet_v2"}


def needs_library(made: Target) -> None:
    if (reason := made.missing()) is not None:
        pytest.skip(reason)


def needs_runtime(made: Target) -> None:
    if made.name in OWN_RUNTIME:
        needs_library(made)


def written(family: str, name: str, folder: Path, *, int8: bool = True) -> Path:
    path = folder / f"model{target(name).suffix}"
    path.write_bytes(content(family, name, int8=int8))
    return path


def logits_of(runner: Runner, inputs: np.ndarray) -> np.ndarray:
    """One sample after another where the file's batch is fixed."""
    size = runner.inputs[0].shape[0]
    pieces = np.split(inputs, len(inputs) // size) if isinstance(size, int) else [inputs]
    return np.concatenate([runner.run({INPUT: piece})[OUTPUT] for piece in pieces])


def test_catalog_holds_the_targets() -> None:
    assert len(NAMES) >= 5
    assert {"onnxruntime_x86", "onnxruntime_arm", "openvino", "tensorrt", "xnnpack"} <= set(NAMES)
    assert set(OWN_RUNTIME) <= set(NAMES)
    assert len(ONNX) >= 4
    assert len(PAIRS) == len(FAMILIES) * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_name_is_the_file_s_and_numerics_are_stated(name: str) -> None:
    made = target(name)
    assert made.name == name
    assert (made.__doc__ or "").strip()
    numerics = made.numerics
    assert numerics.activation in ("uint8", "int8")
    assert numerics.bias in ("int32", "float")
    # symmetric codes need signed integers
    assert not (numerics.symmetric_activations and numerics.activation == "uint8")


@pytest.mark.parametrize("name", ONNX)
@pytest.mark.parametrize("int8", [True, False])
def test_finishing_twice_changes_nothing_more(name: str, int8: bool) -> None:
    model = exported("tiny", name, int8=int8)
    before = model.SerializeToString(deterministic=True)
    again = target(name).finish(model, int8=int8)
    onnx.checker.check_model(again, full_check=True)
    kinds = [node.op_type for node in again.graph.node]
    assert kinds == [node.op_type for node in onnx.load_model_from_string(before).graph.node]


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_reference_agrees_with_the_program(family: str, name: str, tmp_path: Path) -> None:
    count = 128 if family in UNSTEADY else 512
    inputs, _ = images(count, 1)
    needs_runtime(target(name))
    with target(name).reference(written(family, name, tmp_path)) as runner:
        found = logits_of(runner, inputs.numpy())
    wanted = program_logits(family, name, count)
    agreeing = float((wanted.argmax(1) == found.argmax(1)).mean())
    if family in UNSTEADY:
        assert sqnr_db(wanted, found) > 25
    else:
        assert sqnr_db(wanted, found) > FEWEST_DB.get(name, 50.0)
        assert agreeing >= FEWEST_AGREEING.get(name, 0.999)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_every_operator_that_can_runs_as_int8(family: str, name: str, tmp_path: Path) -> None:
    made = target(name)
    needs_library(made)
    audit = made.audit(written(family, name, tmp_path))
    assert isinstance(audit, Audit)
    assert audit.target == name
    assert audit.islands == ()
    assert audit.coverage == 1.0
    assert audit.quantizable == audit.int8 >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_whole_mobilenet_v2_runs_as_int8(name: str, tmp_path: Path) -> None:
    path = save_onnx(exported("mobilenet_v2", name, whole=True), tmp_path / "model.onnx")
    audit = target(name).audit(path)
    assert (audit.coverage, audit.islands) == (1.0, ())
    assert audit.quantizable > 60


@pytest.mark.parametrize("name", NAMES)
def test_audit_names_islands_when_the_file_is_float(name: str, tmp_path: Path) -> None:
    made = target(name)
    needs_library(made)
    audit = made.audit(written("tiny", name, tmp_path, int8=False))
    assert audit.coverage < 1.0
    assert audit.islands
    assert all(island.cause and island.remedy for island in audit.islands)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("int8", [True, False])
def test_reference_runs_both_files_of_a_target_anywhere(name: str, int8: bool, tmp_path: Path) -> None:
    inputs, labels = images(256, 1)
    needs_runtime(target(name))
    with target(name).reference(written("tiny", name, tmp_path, int8=int8)) as runner:
        assert isinstance(runner, Runner)
        assert [one.name for one in runner.inputs] == [INPUT]
        assert [one.name for one in runner.outputs] == [OUTPUT]
        found = logits_of(runner, inputs.numpy())
    assert found.shape == (256, 10)
    assert found.dtype == np.float32
    assert float((found.argmax(1) == labels.numpy()).mean()) > 0.95  # the network was trained, and still knows it


@pytest.mark.parametrize("name", NAMES)
def test_file_says_whether_it_is_meant_to_be_int8(name: str, tmp_path: Path) -> None:
    made = target(name)
    needs_runtime(made)
    assert made.is_int8(written("tiny", name, tmp_path))
    assert not made.is_int8(written("tiny", name, tmp_path, int8=False))


@pytest.mark.parametrize("name", NAMES)
def test_operator_times_are_shares_of_the_whole_and_the_slowest_comes_first(name: str, tmp_path: Path) -> None:
    made = target(name)
    if made.name not in OWN_RUNTIME:
        pytest.skip("its operators are timed by ONNX Runtime, or need its hardware")
    needs_runtime(made)
    path = written("tiny", name, tmp_path)
    times = made.operator_times(path, {INPUT: images(320, 0)[0][:1].numpy()}, runs=3)
    assert [one.mean_us for one in times] == sorted((one.mean_us for one in times), reverse=True)
    assert sum(one.share for one in times) == pytest.approx(1.0)
    # three convolutions and a classifier
    assert sum(one.int8 for one in times) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_absence_and_missing_libraries_are_told_in_a_sentence(name: str) -> None:
    made = target(name)
    for reason in (made.missing(), made.absent_here()):
        assert reason is None or len(reason) > 20


@pytest.mark.parametrize("name", RUNTIMES)
def test_nothing_is_built_when_the_runtime_loads_the_file_itself(name: str, tmp_path: Path) -> None:
    assert target(name).build(tmp_path / "model.onnx", settings=ExportSettings()) == []


def test_signed_activations_do_not_saturate_on_a_processor_that_adds_pairs_in_16_bits(tmp_path: Path) -> None:
    # 8-bit weights and the largest activations: rewritten to unsigned, pairs of products pass 2^15 without VNNI
    path = written("tiny", "onnxruntime_arm", tmp_path)
    inputs = images(64, 1)[0] * 3
    with target("onnxruntime_arm").reference(path) as runner:
        found = runner.run({INPUT: inputs.numpy()})[OUTPUT]
    with torch.no_grad():
        wanted = program("tiny", "onnxruntime_arm")(inputs).numpy()
    assert sqnr_db(wanted, found) > 50


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    "family", ["tiny", *(pytest.param(one, marks=pytest.mark.slow) for one in ("resnet", "mobilenet_v2"))]
)
def test_tensorrt_feeds_every_convolution_with_int8_and_refuses_nothing(family: str, tmp_path: Path) -> None:
    made = target("tensorrt")
    needs_library(made)
    model = exported(family, "tensorrt")
    audit = made.audit(save_onnx(model, tmp_path / "model.onnx"))
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    assert audit.operators["CONVOLUTION"] == convolutions >= 3
    assert audit.islands == ()
    zero_points = [
        onnx.numpy_helper.to_array(tensor)
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
        for tensor in model.graph.initializer
        if tensor.name == node.input[2]
    ]
    assert zero_points
    assert not any(values.any() for values in zero_points)


# layouts that users really write


def odd_file(layout: str, name: str, folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A file, inputs, and what its program gives for them."""
    made, inputs = target(name), odd_images(256, seed=3)
    graph = quantize.prepare(
        odd_network(layout),
        inputs[:4],
        numerics=made.numerics,
        calibrator=MeanSquaredError(Options()),
        reduce_range=made.sums_in_16_bits,
    )
    quantize.calibrate(graph, inputs.split(64))
    converted = quantize.convert(graph, inputs[:2], numerics=made.numerics)
    with torch.no_grad():
        wanted = converted(inputs).numpy()
    path = made.write(converted, inputs[:1], folder / f"model{made.suffix}", int8=True, metadata={})
    return path, inputs.numpy(), wanted


FAST_ODD = ("NormOnInputAndFeatures",)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        pytest.param(layout, name, marks=() if (layout in FAST_ODD and name == "onnxruntime_x86") else pytest.mark.slow)
        for layout in ODD
        for name in NAMES
    ],
)
def test_odd_network_reaches_the_target_whole(layout: str, name: str, tmp_path: Path) -> None:
    needs_runtime(target(name))
    path, inputs, wanted = odd_file(layout, name, tmp_path)
    made = target(name)
    with made.reference(path) as runner:
        found = logits_of(runner, inputs)
    assert sqnr_db(wanted, found) > FEWEST_DB.get(name, 50.0)
    needs_library(made)
    audit = made.audit(path)
    assert audit.islands == ()
    assert audit.coverage == 1.0
