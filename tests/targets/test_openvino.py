"""The OpenVINO target on the real runtime: its runner, its audit of small Q/DQ graphs, and what its rules rest on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_models import exported
from onnx import TensorProto, helper, numpy_helper
from ort_graphs import C, H, QdqGraph, residual_network

from edgekd.devices.cpu import Cpu
from edgekd.errors import BackendMissing, MismatchError, ModelFileError, UsageError
from edgekd.recipe import ExportSettings
from edgekd.spec import Runner
from edgekd.targets import _openvino_library as library
from edgekd.targets._openvino_causes import island_of
from edgekd.targets._openvino_runner import OpenVinoRunner
from edgekd.targets._plain import PlainRunner
from edgekd.targets.onnxruntime_x86 import OnnxRuntimeX86
from edgekd.targets.openvino import OpenVino

if (absent := OpenVino().missing()) is not None:
    pytest.skip(absent, allow_module_level=True)

IMAGES = np.random.default_rng(1).standard_normal((6, C, H, H)).astype(np.float32)
HAS_VNNI = bool(Cpu(Cpu.Options()).fingerprint().get("has_vnni"))


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(residual_network(), tmp_path)


def quarter_range(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with 6-bit weights, whose sums of pairs fit 16 bits on any processor."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) // 4).astype(np.int8), tensor.name))
    return model


# the runner


def test_runner_gives_the_files_results_for_every_batch_when_the_batch_is_open(path: Path) -> None:
    path = saved(quarter_range(onnx.load(path)), path.parent)
    with OpenVinoRunner(path) as runner, PlainRunner(path) as plain:
        assert isinstance(runner, Runner)
        for batch in (1, 3, 6, 2, 5, 1):
            wanted, found = plain.run({"x": IMAGES[:batch]}), runner.run({"x": IMAGES[:batch]})
            assert found["y_dq"].shape == (batch, 4)
            np.testing.assert_allclose(found["y_dq"], wanted["y_dq"], atol=0.11)  # two codes of 0.05


def test_interface_is_the_files_own(path: Path) -> None:
    with OpenVinoRunner(path) as runner:
        assert [(spec.name, spec.dtype, spec.shape) for spec in runner.inputs] == [("x", "float32", ["B", C, H, H])]
        assert [spec.name for spec in runner.outputs] == ["y_dq"]


def test_threads_stream_and_precision_are_stated_when_it_opens(path: Path) -> None:
    with OpenVinoRunner(path) as runner:
        said = {key: runner.compiled.get_property(key) for key in ("NUM_STREAMS", "INFERENCE_NUM_THREADS")}
        assert said == {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
        assert runner.compiled.get_property("ENABLE_HYPER_THREADING") is False
        assert "float32" in str(runner.compiled.get_property("INFERENCE_PRECISION_HINT"))
        assert (runner.provider_requested, runner.provider_used, runner.threads) == ("CPU", "CPU", 1)


def test_more_threads_than_cores_are_refused_unless_any_number_will_do(path: Path) -> None:
    with pytest.raises(UsageError, match=r"4096 threads were asked for and OpenVINO takes \d+: one for each core"):
        OpenVinoRunner(path, threads=4096)
    with OpenVinoRunner(path, threads=4096, exact_threads=False) as runner:
        assert 1 <= runner.threads < 4096


def test_result_is_not_overwritten_by_the_next_run(path: Path) -> None:
    with OpenVinoRunner(path) as runner:
        first = runner.run({"x": IMAGES[:1]})["y_dq"]
        kept = first.copy()
        runner.run({"x": IMAGES[1:2] * 5})
        np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("feeds", "got"),
    [
        ({}, "got nothing"),
        ({"x": IMAGES.astype(np.float64)}, r"got x float64 \[6, 8, 6, 6\]"),
        ({"x": IMAGES[:, :4]}, r"got x float32 \[6, 4, 6, 6\]"),
        ({"z": IMAGES}, "got z float32"),
    ],
)
def test_feeds_that_the_runtime_would_swallow_are_refused(path: Path, feeds: dict[str, np.ndarray], got: str) -> None:
    with (
        OpenVinoRunner(path) as runner,
        pytest.raises(MismatchError, match=rf"takes x float32 \['B', 8, 6, 6\]; {got}"),
    ):
        runner.run(feeds)


def test_closed_runner_says_so(path: Path) -> None:
    runner = OpenVinoRunner(path)
    runner.close()
    runner.close()
    with pytest.raises(RuntimeError, match="is closed"):
        runner.run({"x": IMAGES})


# files that are no use


def custom_operator() -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Foo", ["x"], ["y"], domain="my.domain")], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my.domain", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_operator_of_another_domain_is_named_when_it_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"cannot read the model: No conversion rule .* my\.domain\.Foo\. Use"):
        OpenVinoRunner(saved(custom_operator(), tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.onnx", None, "no such file"),
        ("empty.onnx", b"", "the file is empty"),
        ("text.onnx", b"hello " * 50, "not an ONNX file"),
        ("alone.xml", b"<net/>", r"alone\.bin: no such file\. An IR is an \.xml and a \.bin"),
        ("missing.xml", None, "no such file"),
    ],
)
def test_unusable_file_is_refused_in_words(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        OpenVinoRunner(tmp_path / name)


def test_damaged_ir_is_refused_when_it_is_opened(path: Path) -> None:
    ir = OpenVino().build(path, settings=ExportSettings())[0].path
    ir.write_text(ir.read_text(encoding="utf-8")[:200], encoding="utf-8")
    with pytest.raises(ModelFileError, match="OpenVINO cannot read the model"):
        OpenVinoRunner(ir)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what Python itself puts there to stop an import
    library.openvino_library.cache_clear()
    library.core.cache_clear()
    try:
        assert "pip install edgekd[openvino]" in (OpenVino().missing() or "")
        assert "edgekd[openvino]" in (OpenVino().absent_here() or "")
        with pytest.raises(BackendMissing, match=r"OpenVINO is not installed .* `pip install edgekd\[openvino\]`"):
            library.core()
    finally:
        library.openvino_library.cache_clear()


# what is shipped


@pytest.mark.slow
def test_int8_file_is_that_of_onnxruntime_x86_when_nothing_is_added() -> None:
    assert replace(OpenVino.numerics, fused_adds=False) == OnnxRuntimeX86.numerics
    ours, theirs = exported("tiny", "openvino"), exported("tiny", "onnxruntime_x86")
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


def test_ir_computes_what_its_onnx_file_does(path: Path) -> None:
    (built,) = OpenVino().build(path, settings=ExportSettings())
    assert built.path == path.with_suffix(".xml")
    assert built.fingerprint["library"] == "openvino"
    assert path.with_suffix(".bin").is_file()
    with OpenVinoRunner(path) as one, OpenVinoRunner(built.path) as other:
        assert [(spec.name, spec.shape[1:]) for spec in other.inputs] == [("x", [C, H, H])]
        np.testing.assert_array_equal(one.run({"x": IMAGES})["y_dq"], other.run({"x": IMAGES})["y_dq"])
    assert OpenVino().is_int8(built.path)


def test_ir_cannot_be_audited(path: Path) -> None:
    (built,) = OpenVino().build(path, settings=ExportSettings())
    with pytest.raises(ModelFileError, match=r"an IR cannot be audited\. Give the ONNX file"):
        OpenVino().audit(built.path)


# the audit


def between(middle: Callable[[QdqGraph, str], str], *, zero: int = 128, opset: int = 20) -> onnx.ModelProto:
    """A convolution, something that takes its codes, and another convolution; all others are int8."""
    graph = QdqGraph(opset=opset)
    codes = graph.pair(graph.op("Relu", [graph.conv(graph.pair("x", zero=128), "a")], "a_relu"))
    behind = graph.pair(middle(graph, codes), zero=zero)
    return graph.model(graph.pair(graph.conv(behind, "z"), zero=128))


def float_weight(graph: QdqGraph, codes: str) -> str:
    return graph.conv(codes, "q", weight=graph.real("w", (C, C, 3, 3)))


def float_input(graph: QdqGraph, codes: str) -> str:
    return graph.conv(graph.op("Tanh", [codes], "t"), "q")


def unsigned_weight(graph: QdqGraph, codes: str) -> str:
    return graph.conv(codes, "q", weight=graph.stored("w", (C, C, 3, 3), dtype="uint8", zero=128))


def shifted_weight(graph: QdqGraph, codes: str) -> str:
    return graph.conv(codes, "q", weight=graph.stored("w", (C, C, 3, 3), zero=3))


def wide_input(graph: QdqGraph, codes: str) -> str:
    return graph.conv(graph.pair(graph.conv(codes, "k"), dtype="int16"), "q")


def channel_input(graph: QdqGraph, codes: str) -> str:
    return graph.conv(graph.pair(graph.conv(codes, "k"), scale=np.linspace(0.01, 0.1, C), zero=np.zeros(C)), "q")


def dynamic_input(graph: QdqGraph, codes: str) -> str:
    graph.op("DynamicQuantizeLinear", [graph.conv(codes, "k")], "d")
    graph.nodes[-1].output.extend(["d_scale", "d_zero"])
    return graph.conv(graph.op("DequantizeLinear", ["d", "d_scale", "d_zero"], "d_dq"), "q")


def integer_operator(graph: QdqGraph, codes: str) -> str:
    graph.constant("w", np.ones((C, C, 3, 3), np.int8))
    graph.op("ConvInteger", ["a_relu_q", "w"], "q_int", pads=[1, 1, 1, 1])
    return graph.op("Cast", ["q_int"], "q", to=TensorProto.FLOAT)


ISLANDS = [
    (float_weight, "Conv", "its weight 'w' is float", "quantize the weight"),
    (float_input, "Conv", "its input 't' comes in float from Tanh", "put a Q/DQ pair on 't'"),
    (unsigned_weight, "Conv", "its weight 'w' is uint8", "int8 weights with zero-point 0"),
    (shifted_weight, "Conv", "its weight 'w' has a zero-point that is not 0", "symmetric weights"),
    (wide_input, "Conv", "its input 'k_dq' is int16", "8-bit activations"),
    (channel_input, "Conv", "its input 'k_dq' has a scale per channel", "one scale"),
    (dynamic_input, "Conv", "the scale or zero-point of its input 'd_dq' is computed at run time", "constants"),
    (integer_operator, "ConvInteger", "OpenVINO computes ConvInteger in float", "Q/DQ pairs"),
]


@pytest.mark.parametrize(("middle", "op", "cause", "remedy"), ISLANDS, ids=[one[0].__name__ for one in ISLANDS])
def test_float_operator_has_its_cause_and_remedy(
    tmp_path: Path, middle: Callable[[QdqGraph, str], str], op: str, cause: str, remedy: str
) -> None:
    audit = OpenVino().audit(saved(between(middle, opset=21), tmp_path))
    (island,) = [one for one in audit.islands if one.op == op]
    assert cause in island.cause
    assert remedy in island.remedy
    assert audit.coverage < 1.0


def test_whole_residual_network_is_int8_and_the_executed_layers_are_listed(path: Path) -> None:
    audit = OpenVino().audit(path)
    assert (audit.target, audit.islands, audit.coverage) == ("openvino", (), 1.0)
    assert audit.int8 >= 6
    assert audit.operators["Convolution"] == 2
    assert audit.operators["FullyConnected"] == 1


@pytest.mark.parametrize(
    ("middle", "zero"),
    [
        (lambda graph, codes: graph.op("Relu", [graph.conv(codes, "q")], "y"), 100),  # any zero-point behind a ReLU
        (lambda graph, codes: graph.op("HardSwish", [graph.conv(codes, "q")], "y"), 128),  # any activation
        (lambda graph, codes: graph.conv(codes, "q", bias=graph.real("b", (C,))), 128),  # a float bias
        (lambda graph, codes: graph.op("ReduceMean", [codes, graph.constant("axes", np.array([2, 3]))], "y"), 0),
    ],
    ids=["zero_point", "activation", "bias", "mean"],
)
def test_what_onnxruntime_would_leave_in_float_is_int8_here(
    tmp_path: Path, middle: Callable[[QdqGraph, str], str], zero: int
) -> None:
    audit = OpenVino().audit(saved(between(middle, zero=zero), tmp_path))
    assert audit.islands == ()
    assert audit.int8 >= 3


def test_operator_without_a_kernel_is_listed_as_float_by_design(tmp_path: Path) -> None:
    model = between(lambda graph, codes: graph.op("Softmax", [codes], "y", axis=1), zero=0)
    audit = OpenVino().audit(saved(model, tmp_path))
    assert audit.islands == ()
    assert audit.legitimate == {"Softmax": 1}


def test_product_of_two_activations_is_no_island(tmp_path: Path) -> None:
    def product(graph: QdqGraph, codes: str) -> str:
        return graph.op("MatMul", [codes, graph.op("Transpose", [codes], "t", perm=[0, 1, 3, 2])], "y")

    assert OpenVino().audit(saved(between(product), tmp_path)).islands == ()


def test_unexplained_operator_still_gets_a_line(path: Path) -> None:
    from edgekd.targets._graphview import GraphView

    view = GraphView(onnx.load(path))
    convolution = next(node for node in view.nodes if node.op_type == "Conv")
    assert "no rule of the audit explains it" in island_of(view, convolution, "it").cause


# what the rules rest on: if a new version behaves otherwise, the target's numerics should change


def sum_of_convolutions(*, rounded: bool, clamped: bool) -> onnx.ModelProto:
    graph = QdqGraph()
    codes = graph.pair(graph.op("Relu", [graph.conv(graph.pair("x", zero=128), "a")], "a_relu"))
    left, right = graph.conv(codes, "left"), graph.pair(graph.conv(codes, "right"), zero=128, scale=0.06)
    left = graph.op("Relu", [left], "left_relu") if clamped else left
    left = graph.pair(left, zero=0 if clamped else 128, scale=0.07) if rounded else left
    added = graph.op("Add", [left, right], "sum")
    return quarter_range(graph.model(graph.pair(added, zero=128)))


def share_of_codes_off(path: Path) -> float:
    with OpenVinoRunner(path) as runner, PlainRunner(path) as plain:
        found, wanted = (one.run({"x": IMAGES})["sum_dq"] for one in (runner, plain))
    return float((np.abs(found - wanted) > 0.025).mean())  # half a code


@pytest.mark.parametrize("clamped", [False, True])
def test_sum_is_made_of_the_unrounded_result_whatever_the_file_says(tmp_path: Path, clamped: bool) -> None:
    with_pair = share_of_codes_off(saved(sum_of_convolutions(rounded=True, clamped=clamped), tmp_path))
    without = share_of_codes_off(saved(sum_of_convolutions(rounded=False, clamped=clamped), tmp_path))
    assert without < 0.05
    assert with_pair > 3 * without


@pytest.mark.skipif(HAS_VNNI, reason="with VNNI products of codes are summed in 32 bits")
def test_products_of_codes_saturate_with_8_bit_weights_on_a_processor_without_vnni(tmp_path: Path) -> None:
    off = {}
    for top in (127, 64):
        graph = QdqGraph()
        graph.constant("w_q", np.full((C, C, 3, 3), top, np.int8))
        weight = graph.op("DequantizeLinear", ["w_q", graph.constant("w_scale", np.float32(0.001))], "w")
        source = graph.pair("x", scale=1 / 255)
        zeros = graph.real("b", (C,))
        graph.initializers[-1].CopyFrom(numpy_helper.from_array(np.zeros(C, np.float32), "b"))
        graph.pair(graph.conv(source, "sum", weight=weight, bias=zeros), scale=0.05)
        path = saved(graph.model("sum_dq"), tmp_path)
        with OpenVinoRunner(path) as runner, PlainRunner(path) as plain:
            ones = {"x": np.ones((1, C, H, H), np.float32)}
            off[top] = float(np.abs(runner.run(ones)["sum_dq"] - plain.run(ones)["sum_dq"]).max())
    assert off[64] < 0.051  # one code
    assert off[127] > 1.0
    assert OpenVino.sums_in_16_bits
