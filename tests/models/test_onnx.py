"""A teacher from an ONNX file: the runtime's answers as torch tensors, with taps, for any batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgekd.errors import MismatchError, ModelFileError, UsageError
from edgekd.models.onnx import Onnx
from edgekd.taps import Tapped

CLASSES, SHAPE = 3, (1, 4, 4)
WEIGHTS = np.random.default_rng(0).standard_normal((16, CLASSES)).astype(np.float32)


def written(
    folder: Path,
    *,
    batch: int | str = "batch",
    shape: tuple[int | str, ...] = SHAPE,
    kind: int = TensorProto.FLOAT,
    second: bool = False,
    sums: bool = False,
) -> Path:
    """flatten, relu, matmul: logits = relu(x) W."""
    weights = numpy_helper.from_array(WEIGHTS, "weights")
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["floats"], ["features"]),
        helper.make_node("Flatten", ["features"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["logits"], keepdims=0)
        if sums
        else helper.make_node("Identity", ["product"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("images", kind, [batch, *shape])]
    inputs += [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1])] if second else []
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "teacher", inputs, [output], [weights])
    path = folder / "teacher.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def built(path: Path, classes: int = CLASSES, shape: tuple[int, int, int] = SHAPE, **options: Any) -> nn.Module:
    return Onnx(Onnx.Options(**options), str(path)).build(classes, shape)


def images(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def by_hand(inputs: Tensor) -> Tensor:
    return inputs.relu().flatten(1) @ torch.from_numpy(WEIGHTS)


@pytest.mark.parametrize("batch", ["batch", 1, 2, 5, 8])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_answers_are_those_of_the_graph_when_the_batch_is_fixed_or_not(tmp_path, batch, kind):
    network = built(written(tmp_path, batch=batch, kind=kind))
    logits = network(images(5))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, by_hand(images(5)), rtol=1e-5, atol=1e-6)  # another order of sums


def test_taps_give_the_named_tensors(tmp_path):
    network = built(written(tmp_path, batch=2), taps={"early": "features", "late": "product"})
    logits, late, early = Tapped(network, ["late", "early"])(images(3))
    assert torch.equal(early, images(3).relu())
    assert torch.equal(late, logits)


def test_it_has_no_parameters_stays_in_evaluation_and_copies_to_itself(tmp_path):
    network = built(written(tmp_path))
    assert list(network.parameters()) == []
    assert network.parameter_count == WEIGHTS.size
    assert not network.train().training
    assert not Tapped(network).train().model.training
    assert copy.deepcopy(network) is network


def test_it_computes_with_the_threads_of_torch(tmp_path):
    network = built(written(tmp_path))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        network(images(1))
        assert network._session.get_session_options().intra_op_num_threads == before + 1
    finally:
        torch.set_num_threads(before)


def test_sources_are_the_file_and_those_beside_it(tmp_path):
    path = written(tmp_path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    factory = Onnx(Onnx.Options(), str(path))
    assert [one.name for one in factory.sources()] == ["teacher.onnx", "weights.bin"]
    torch.testing.assert_close(factory.build(CLASSES, SHAPE)(images(2)), by_hand(images(2)), rtol=1e-5, atol=1e-6)


def test_it_refuses_tensors_outside_of_the_files_folder(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = written(inner)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    (tmp_path / "weights.bin").write_bytes((inner / "weights.bin").read_bytes())
    model.graph.initializer[0].external_data[0].value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"tensor 'weights' lies in '../weights.bin', outside of its folder"):
        built(path)
    model.graph.initializer[0].external_data[0].value = "gone.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"external file 'gone.bin' is missing"):
        built(path)


def test_it_names_both_sides_when_the_input_does_not_fit(tmp_path):
    with pytest.raises(MismatchError, match=r"shape \(batch, 1, 4, 4\), the data gives \(B, 3, 4, 4\)"):
        built(written(tmp_path), shape=(3, 4, 4))
    # a file that takes any size, until its matrix says otherwise
    with pytest.raises(MismatchError, match="ONNX Runtime cannot run it"):
        built(written(tmp_path, shape=("c", "h", "w")), shape=(1, 5, 5))
    network = built(written(tmp_path))
    with pytest.raises(MismatchError, match=r"built for inputs of shape \(B, 1, 4, 4\), got \(2, 1, 5, 5\)"):
        network(torch.zeros(2, 1, 5, 5))


def test_it_names_both_sides_when_the_classes_do_not_fit(tmp_path):
    with pytest.raises(MismatchError, match="gives 3 classes, the data has 10"):
        built(written(tmp_path), classes=10)


def test_it_refuses_files_that_are_no_teacher(tmp_path):
    with pytest.raises(MismatchError, match=r"has 2 inputs \(images, mask\)"):
        built(written(tmp_path, second=True))
    with pytest.raises(MismatchError, match="takes uint8, but the data gives normalised floats"):
        built(written(tmp_path, kind=TensorProto.UINT8))
    with pytest.raises(MismatchError, match=r"output 'logits' is float32 of shape \(\) for 1 samples"):
        built(written(tmp_path, sums=True))


def test_it_refuses_what_is_not_onnx(tmp_path):
    with pytest.raises(UsageError, match=r"Write onnx:PATH.onnx"):
        Onnx(Onnx.Options(), "").build(CLASSES, SHAPE)
    with pytest.raises(ModelFileError, match=r"gone.onnx does not exist.*relative to the recipe"):
        built(tmp_path / "gone.onnx")
    with pytest.raises(ModelFileError, match="is a folder"):
        built(tmp_path)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="not an ONNX model"):
        built(broken)


def test_it_suggests_a_tensor_when_a_tap_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"no tensor 'featurs' to tap. Did you mean 'features'?"):
        built(written(tmp_path), taps={"early": "featurs"})
    with pytest.raises(UsageError, match=r"a tap cannot be called 'layer.1'"):
        built(written(tmp_path), taps={"layer.1": "features"})
    with pytest.raises(UsageError, match=r"a tap cannot be called 'forward'"):
        built(written(tmp_path), taps={"forward": "features"})
