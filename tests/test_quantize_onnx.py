"""Quantization of ONNX files without a torch source: the same codes as the torch way, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from int8_models import FAMILIES, exported, images, sqnr_db, target
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgekd._observing import observe
from edgekd.catalog import CATALOGS
from edgekd.errors import DataError, MismatchError, ModelFileError, UsageError
from edgekd.export import onnx_from_torch
from edgekd.quantize_onnx import QuantizedOnnx, float_graph, quantize_onnx
from edgekd.targets._graph import Graph
from edgekd.targets._place import Placement
from edgekd.targets._windows import Window

INPUT = "image"


def calibrator(name: str = "mse") -> Any:
    member = CATALOGS["calibration"].load(name).member
    return member(member.Options())


def quantized(model: onnx.ModelProto, name: str = "onnxruntime_x86", **settings: Any) -> QuantizedOnnx:
    values = settings.pop("values", None)
    if values is None:
        values = images(320, 0)[0][:64].numpy()
    chosen: dict[str, Any] = {"calibrator": calibrator(), "reduce_range": True, **settings}
    return quantize_onnx(model, [{INPUT: values[:32]}, {INPUT: values[32:]}], target=target(name), **chosen)


def outputs(model: onnx.ModelProto, values: np.ndarray, *, optimized: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {INPUT: values})[0]
    return found


def codes(model: onnx.ModelProto) -> list[np.ndarray]:
    """The int8 weights, in the order of their operators."""
    graph = Graph(model)
    found = []
    for node in graph.of_type("Conv", "Gemm", "MatMul"):
        source = graph.producer(node.input[1])
        if source is not None and source.op_type == "DequantizeLinear":
            values = graph.value(source.input[0])
            assert values is not None
            found.append(values)
    return found


# wrn of this depth and width is that resnet
_QUICK = {"onnxruntime_x86": {"resnet", "tiny"}, "onnxruntime_arm": {"tiny"}, "tensorrt": {"tiny"}}
WITH_THE_REST = [
    pytest.param(family, name, marks=() if family in _QUICK[name] else pytest.mark.slow)
    for family in sorted(FAMILIES)
    for name in ("onnxruntime_x86", "onnxruntime_arm", "tensorrt")
]


@pytest.mark.parametrize(("family", "name"), WITH_THE_REST)
def test_both_ways_give_the_same_weights_and_nearly_the_same_answers(family: str, name: str):
    by_torch = exported(family, name)
    by_onnx = quantized(exported(family, name, int8=False), name, reduce_range=name == "onnxruntime_x86").model
    ours, theirs = codes(by_torch), codes(by_onnx)
    assert len(ours) == len(theirs) >= 3
    for mine, other in zip(ours, theirs, strict=True):
        # torch folds in float64, the runtime in float32: a weight on the edge of a code may fall on either side
        assert np.abs(mine.astype(int) - np.reshape(other, mine.shape).astype(int)).max() <= 1
        assert np.mean(mine != np.reshape(other, mine.shape)) < 0.01
    values = images(64, 1)[0].numpy()
    run = {} if name != "tensorrt" else {"optimized": False}
    assert sqnr_db(outputs(by_torch, values, **run), outputs(by_onnx, values, **run)) > 25.0


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_operator_runs_as_int8(family: str, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(quantized(exported(family, "onnxruntime_x86", int8=False)).model.SerializeToString())
    audit = target("onnxruntime_x86").audit(path)
    assert audit.islands == ()
    assert audit.int8 == audit.quantizable >= 5


def test_named_nodes_stay_float():
    model = exported("resnet", "onnxruntime_x86", int8=False)
    placement = Placement(Graph(float_graph(model)), target("onnxruntime_x86").numerics)
    name = placement.groups[0].name
    kept = quantized(model, float_layers=[name]).model
    assert len(codes(kept)) == len(codes(quantized(model).model)) - 1
    with pytest.raises(UsageError, match="no quantizable node 'nowhere'"):
        quantized(model, float_layers=["nowhere"])


class Block(nn.Module):
    """A transformer block with its normalisation in front: the residual stream is read by floats only."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.norm, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down, self.mix = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.mix(self.norm(x))
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def block() -> onnx.ModelProto:
    torch.manual_seed(0)
    return onnx_from_torch(
        Block().eval(), torch.randn(2, 3, 32, 32), target=target("onnxruntime_x86"), opset=20, int8=False, metadata={}
    )


def test_the_residual_stream_of_a_transformer_stays_float_and_its_linear_layers_do_not():
    model = quantized(block()).model
    assert len(codes(model)) == 5
    graph = Graph(model)
    for node in graph.of_type("Add"):
        sources = [graph.producer(name) for name in node.input]
        assert not all(one is not None and one.op_type == "DequantizeLinear" for one in sources), node.name


def test_the_interface_keeps_its_names_and_its_dynamic_batch():
    before = exported("tiny", "onnxruntime_x86", int8=False)
    after = quantized(before).model
    assert [v.name for v in after.graph.input] == [v.name for v in before.graph.input]
    assert [v.name for v in after.graph.output] == [v.name for v in before.graph.output]
    for count in (1, 5):
        assert outputs(after, images(320, 0)[0][:count].numpy()).shape == (count, 10)


def test_an_output_in_the_middle_of_the_graph_keeps_its_name():
    model = float_graph(exported("resnet", "onnxruntime_x86", int8=False))
    middle = Graph(model).of_type("Relu")[1].output[0]
    inferred = onnx.shape_inference.infer_shapes(model)
    model.graph.output.append(next(v for v in inferred.graph.value_info if v.name == middle))
    after = quantized(model).model
    assert [v.name for v in after.graph.output] == ["logits", middle]
    values = images(64, 1)[0].numpy()
    session = onnxruntime.InferenceSession(after.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found, expected = session.run([middle], {INPUT: values})[0], wanted.run([middle], {INPUT: values})[0]
    assert sqnr_db(expected, found) > 15.0


def test_order_and_split_of_the_batches_do_not_matter():
    model = float_graph(exported("tiny", "onnxruntime_x86", int8=False))
    placement = Placement(Graph(model), target("onnxruntime_x86").numerics)
    values = images(320, 0)[0][:48].numpy()
    means = {"input": Window(INPUT, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0))}
    whole = observe(model, placement.observed(), [{INPUT: values}], means=means)
    split = [{INPUT: one} for one in np.split(values, 6)[::-1]]
    parts = observe(model, placement.observed(), split, means=means)
    assert parts.samples == whole.samples == 48
    # what is computed may differ in its last digit with the batch; the input itself may not
    assert parts.histograms[INPUT].to_json() == whole.histograms[INPUT].to_json()
    assert parts.histograms.keys() == whole.histograms.keys()
    np.testing.assert_allclose(parts.means["input"].value[:, 0, 0], values.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(parts.means["input"].value, whole.means["input"].value, rtol=1e-5)


def test_what_was_seen_serves_another_calibrator_and_is_refused_for_another_target():
    model = exported("tiny", "onnxruntime_x86", int8=False)
    first = quantized(model)
    again = quantize_onnx(
        model,
        iter(()),
        target=target("onnxruntime_x86"),
        calibrator=calibrator(),
        reduce_range=True,
        observed=first.observed,
    )
    assert again.model == first.model
    assert again.calibration_s == 0.0
    with pytest.raises(MismatchError, match=r"The calibration statistics lack tensor '.*made for another target"):
        quantized(exported("resnet", "onnxruntime_x86", int8=False), observed=first.observed)


def test_a_quantized_file_is_refused():
    with pytest.raises(MismatchError, match=r"model: is quantized already. `edgekd audit model` says"):
        quantized(exported("tiny", "onnxruntime_x86"))


def test_half_precision_is_refused():
    model = exported("tiny", "onnxruntime_x86", int8=False)
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    with pytest.raises(MismatchError, match="computes in half precision"):
        quantized(model)


def test_an_operator_of_an_unknown_domain_is_refused_by_name():
    model = exported("tiny", "onnxruntime_x86", int8=False)
    relu = Graph(model).of_type("Relu")[0]
    next(node for node in model.graph.node if node.name == relu.name).domain = "my.domain"
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    with pytest.raises(ModelFileError, match=r"ONNX Runtime refuses the model: .*my\.domain"):
        quantized(model)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.full((8, 3, 32, 32), np.nan, np.float32), DataError, f"Tensor '{INPUT}': .*NaN"),
        (np.zeros((0, 3, 32, 32), np.float32), DataError, "saw no data"),
        (np.zeros((8, 1, 32, 32), np.float32), MismatchError, "The model takes image"),
    ],
    ids=["NaN", "nothing", "another shape"],
)
def test_data_that_cannot_calibrate_are_refused(values: np.ndarray, error: type[Exception], message: str):
    batches = [{INPUT: values}] if len(values) else []
    with pytest.raises(error, match=message):
        quantize_onnx(
            exported("tiny", "onnxruntime_x86", int8=False),
            batches,
            target=target("onnxruntime_x86"),
            calibrator=calibrator(),
            reduce_range=True,
        )


def test_constant_data_give_a_model_that_runs():
    model = quantized(
        exported("tiny", "onnxruntime_x86", int8=False), values=np.full((64, 3, 32, 32), 0.25, np.float32)
    ).model
    assert np.isfinite(outputs(model, np.full((2, 3, 32, 32), 0.25, np.float32))).all()


def test_a_subgraph_is_left_alone_and_still_runs():
    rng = np.random.default_rng(0)
    branch = [
        helper.make_graph(
            [helper.make_node("Mul", ["y", factor], ["z"])],
            f"branch_{factor}",
            [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        )
        for factor in ("two", "three")
    ]
    nodes = [
        helper.make_node("Conv", [INPUT, "w"], ["y"], name="conv"),
        helper.make_node("ReduceMean", ["y"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["out"], then_branch=branch[0], else_branch=branch[1]),
    ]
    constants = {
        "w": rng.normal(size=(4, 3, 1, 1)),
        "two": np.array(2.0),
        "three": np.array(3.0),
        "zero": np.array(0.0),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["B", 3, 32, 32])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["B", 4, 32, 32])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    after = quantized(model).model
    values = images(64, 1)[0].numpy()
    assert sqnr_db(outputs(model, values), outputs(after, values)) > 20.0


def test_an_old_operator_set_is_raised():
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("Conv", [INPUT, "w"], ["y"]), helper.make_node("Relu", ["y"], ["out"])],
        "g",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["B", 3, 32, 32])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["B", 4, 32, 32])],
        [numpy_helper.from_array(rng.normal(size=(4, 3, 1, 1)).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=6)
    after = quantized(model).model
    assert after.opset_import[0].version >= 13
    values = images(64, 1)[0].numpy()
    assert sqnr_db(outputs(model, values), outputs(after, values)) > 25.0
