"""Exported files: valid, dynamic, self-describing, free of the machine's traces, and the same codes as in torch."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from int8_models import CLASSES, NOTES, PIXELS, SIZE, SPEC, exported, images, network, program, sqnr_db, target
from torch import Tensor, nn

from edgekd.errors import MismatchError
from edgekd.export import INPUT, OUTPUT, golden_vectors, metadata, model_spec, onnx_from_torch, save_onnx
from edgekd.spec import ModelSpec, Preprocessing
from edgekd.targets._graph import Graph
from edgekd.targets._graph_passes import (
    absorb_clamps,
    quantize_bias,
    remove_dead,
    remove_identities,
    restore_global_pool,
)
from edgekd.targets.onnxruntime_x86 import OnnxRuntimeX86

X86 = "onnxruntime_x86"
REPOSITORY = Path(__file__).resolve().parent.parent


def run(model: onnx.ModelProto, inputs: Tensor, *, optimized: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {INPUT: inputs.numpy()})[0]
    return found


def properties(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


# what the file says


@pytest.mark.parametrize("int8", [True, False])
def test_file_names_its_input_and_output_and_leaves_the_batch_open(int8: bool) -> None:
    model = exported("tiny", X86, int8=int8)
    onnx.checker.check_model(model, full_check=True)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == (INPUT, OUTPUT)
    shapes = [[d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim] for one in (image, logits)]
    assert shapes == [["batch", 3, SIZE, SIZE], ["batch", CLASSES]]
    assert model.producer_name == "edgekd"


def test_specification_says_what_the_file_has() -> None:
    model = exported("tiny", X86)
    spec = model_spec(PIXELS, (f"class {index}" for index in range(CLASSES)))
    assert spec == SPEC
    for ours, theirs in ((spec.inputs[0], model.graph.input[0]), (spec.outputs[0], model.graph.output[0])):
        assert ours.name == theirs.name
        assert ours.shape == [d.dim_param or d.dim_value for d in theirs.type.tensor_type.shape.dim]


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_any_batch_runs_and_samples_do_not_mix(batch: int, int8: bool) -> None:
    model = exported("tiny", X86, int8=int8)
    inputs = images(8, 1)[0]
    whole = run(model, inputs)
    np.testing.assert_allclose(run(model, inputs[:batch]), whole[:batch], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [18, 19, 20])
def test_opset_is_the_one_that_was_asked_for_and_all_compute_the_same(opset: int) -> None:
    model = exported("tiny", X86, opset=opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import if entry.domain == ""] == [("", opset)]
    assert model.ir_version <= 9  # newer ones are refused by runtimes on devices
    inputs = images(64, 1)[0]
    np.testing.assert_array_equal(run(model, inputs), run(exported("tiny", X86), inputs))


def test_metadata_parses_back() -> None:
    found = properties(exported("tiny", X86))
    assert found == NOTES
    assert json.loads(found["edgekd.labels"]) == SPEC.labels
    assert Preprocessing.model_validate_json(found["edgekd.preprocessing"]) == PIXELS
    assert found["edgekd.recipe"] == "test"


def test_metadata_has_every_id_in_a_fixed_order() -> None:
    ids = {"student_id": "s", "a": "1", "recipe": "r"}
    notes = metadata(SPEC, ids)
    assert list(notes) == ["edgekd.labels", "edgekd.preprocessing", "edgekd.a", "edgekd.recipe", "edgekd.student_id"]
    assert notes == metadata(ModelSpec.model_validate_json(SPEC.model_dump_json()), dict(reversed(ids.items())))


@pytest.mark.parametrize("int8", [True, False])
def test_no_trace_of_the_machine_is_in_the_file(int8: bool) -> None:
    content = exported("tiny", X86, int8=int8).SerializeToString()
    traces = {str(REPOSITORY), str(Path.home()), sys.prefix, "site-packages", "/home/", "/root", ".py", "torch.nn"}
    user = getpass.getuser()
    assert [one for one in traces | ({user} if len(user) > 3 else set()) if one.encode() in content] == []


def test_two_exports_are_identical_bytes() -> None:
    first = exported("tiny", X86)
    again = onnx_from_torch(
        program("tiny", X86), images(320, 0)[0][:2], target=target(X86), opset=20, int8=True, metadata=NOTES
    )
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)


def test_weights_are_stored_as_int8_and_biases_as_int32() -> None:
    model = exported("tiny", X86)
    kinds = {
        onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer if len(tensor.dims) > 1
    }
    assert kinds == {"INT8"}
    float_size = exported("tiny", X86, int8=False).ByteSize()
    assert model.ByteSize() < 0.6 * float_size  # of a small network, names and shapes are a good part
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            makers = [Graph(model).producer(name) for name in node.input]
            assert [maker.op_type for maker in makers if maker is not None] == ["DequantizeLinear"] * 3


def test_float_file_has_no_quantizers_and_equals_the_network() -> None:
    model = exported("tiny", X86, int8=False)
    assert not any("Quantize" in node.op_type for node in model.graph.node)
    assert "GlobalAveragePool" in {node.op_type for node in model.graph.node}
    inputs = images(32, 1)[0]
    with torch.no_grad():
        wanted = network("tiny")(inputs).numpy()
    assert sqnr_db(wanted, run(model, inputs)) > 100


# what the file computes


@pytest.mark.parametrize("optimized", [False, True])
def test_int8_file_equals_the_program_whether_or_not_it_is_optimized(optimized: bool) -> None:
    inputs = images(128, 1)[0]
    with torch.no_grad():
        wanted = program("tiny", X86)(inputs).numpy()
    found = run(exported("tiny", X86), inputs, optimized=optimized)
    assert sqnr_db(wanted, found) > 50
    assert (wanted.argmax(1) == found.argmax(1)).all()


def test_golden_vectors_replay(tmp_path: Path) -> None:
    path = save_onnx(exported("tiny", X86), tmp_path / "model.onnx")
    inputs = images(4, 1)[0]
    with target(X86).runner(path) as runner:
        logits = runner.run({INPUT: inputs.numpy()})[OUTPUT]
        stored = np.load(golden_vectors(inputs.numpy(), logits, tmp_path / "golden.npz"))
        assert set(stored.files) == {"image", "logits"}
        assert stored["image"].dtype == stored["logits"].dtype == np.float32
        np.testing.assert_array_equal(runner.run({INPUT: stored["image"]})[OUTPUT], stored["logits"])


def test_saved_file_is_one_file_and_loads_as_it_was(tmp_path: Path) -> None:
    model = exported("tiny", X86)
    path = save_onnx(model, tmp_path / "model.onnx")
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    assert onnx.load(path).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_every_pass_keeps_what_the_file_computes() -> None:
    class Unfinished(OnnxRuntimeX86):
        """What the exporter gives."""

        def finish(self, model: onnx.ModelProto, *, int8: bool) -> onnx.ModelProto:
            return model

    inputs = images(16, 1)[0]
    model = onnx_from_torch(program("tiny", X86), inputs[:2], target=Unfinished(), opset=20, int8=True, metadata={})
    before, changes = run(model, inputs, optimized=False), {}
    for edit in (remove_identities, restore_global_pool, absorb_clamps, quantize_bias, remove_dead):
        changes[edit.__name__] = edit(Graph(model))
        onnx.checker.check_model(model, full_check=True)
        after = run(model, inputs, optimized=False)
        assert sqnr_db(before, after) > 90, edit.__name__
    # three ReLUs, three convolutions and a layer; constants that the passes left behind
    assert (changes["restore_global_pool"], changes["absorb_clamps"], changes["quantize_bias"]) == (1, 3, 4)


# what cannot be exported


class _Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x.flatten(2)).flatten(1)


def test_refusal_names_the_reason_when_an_operator_has_no_onnx_form() -> None:
    with pytest.raises(MismatchError, match=r"The ONNX exporter refused the model: \S+"):
        onnx_from_torch(_Unknown(), torch.randn(2, 3, 8, 8), target=target(X86), opset=20, int8=False, metadata={})


def test_module_is_not_changed_by_its_export() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 64, 5)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    onnx_from_torch(module, torch.randn(1, 3, 8, 8), target=target(X86), opset=20, int8=False, metadata={})
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
