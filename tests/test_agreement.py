"""Agreement between runtimes: numbers by hand, real runtimes on small files, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_models import exported, images
from onnx import TensorProto, helper
from ort_graphs import C, H, QdqGraph, residual_network

from edgekd._agreement_pairs import judged
from edgekd._intervals import wilson_interval
from edgekd._probes import int8_sums
from edgekd.agreement import EMULATED, PLAIN, agree, compared, runtime_names
from edgekd.devices import _arm64_run
from edgekd.devices._arm64_userland import USERLAND, EmulatedArm64Runner, userland_folder
from edgekd.errors import BackendMissing, DataError, GateFailed, MismatchError, ModelFileError, UsageError
from edgekd.export import INPUT
from edgekd.targets._modelfile import model_inputs, model_outputs, read_model
from edgekd.targets._onnxruntime import OnnxRuntimeRunner
from edgekd.targets._plain import PlainRunner
from edgekd.targets._saturation import saturable_weights, with_exact_sums

X86 = "onnxruntime_x86"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    values = np.random.default_rng(0).standard_normal((20, C, H, H)).astype(np.float32)
    np.savez(path, x=values, labels=np.arange(20) % 4)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(residual_network(), tmp_path / "model.onnx")


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def classifier(*, weight: int, bias_scale: float, features: int = 64) -> onnx.ModelProto:
    """A fully connected layer with equal weight codes, whose biases are codes from -30 to 30."""
    graph = QdqGraph()
    codes = np.full((4, features), weight, np.int8)
    codes[1:] //= 2
    graph.constant("w_q", codes)
    graph.constant("w_scale", np.float32(0.01))
    graph.constant("w_zero", np.int8(0))
    graph.op("DequantizeLinear", ["w_q", "w_scale", "w_zero"], "w")
    graph.constant("b_q", np.array([-30, -10, 10, 30], np.int32))
    graph.constant("b_scale", np.float32(bias_scale))
    graph.constant("b_zero", np.int32(0))
    graph.op("DequantizeLinear", ["b_q", "b_scale", "b_zero"], "b")
    graph.op("Gemm", [graph.pair("x"), "w", "b"], "y", transB=1)
    return graph.model("y", shape=("B", features))


def test_comparison_has_the_numbers_worked_by_hand() -> None:
    a = np.array([[0.0, 4.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    b = np.array([[0.0, 3.0], [1.0, 2.0], [0.0, 3.0], [1.0, 0.5]])
    row = compared(a, b, names=("a", "b"))
    assert (row.n, row.agreeing, row.top1_agreement, row.disagreeing) == (4, 3, 0.75, [1])
    assert row.max_abs_diff == 1.0
    assert row.max_rel_diff == 0.25  # a goes from 0 to 4
    assert row.mean_abs_diff == pytest.approx((1 + 1 + 1 + 0.5) / 8)
    assert row.ci95 == wilson_interval(3, 4)


def test_comparison_is_exact_when_both_are_equal() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 3))
    row = compared(logits, logits.copy(), names=("a", "b"))
    assert (row.top1_agreement, row.max_abs_diff, row.disagreeing) == (1.0, 0.0, [])
    assert row.ci95[1] == 1.0


def test_comparison_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(MismatchError, match=r"a and b give different outputs: \[2, 3\] and \[2, 4\]"):
        compared(np.zeros((2, 3)), np.zeros((2, 4)), names=("a", "b"))
    with pytest.raises(GateFailed, match="b: a logit is NaN"):
        compared(np.zeros((1, 2)), np.array([[0.0, np.nan]]), names=("a", "b"))


def test_runtimes_agree_on_a_file_whose_sums_fit(tmp_path: Path, data: Path) -> None:
    path = saved(classifier(weight=64, bias_scale=0.0005, features=C * H * H), tmp_path / "model.onnx")
    np.savez(data, x=np.random.default_rng(1).uniform(0, 13, (200, C * H * H)).astype(np.float32))
    found = agree([path], data=data, runtimes=[X86])
    assert found.reference == f"model.onnx on {PLAIN}"
    assert [row.runtime for row in found.answers] == [PLAIN, X86]
    assert [(pair.n, pair.agreeing) for pair in found.pairs] == [(200, 200)]
    assert found.pairs[0].max_rel_diff < 1e-5  # whole numbers up to float32's own rounding
    assert [row.cause for row in found.answers] == [None, None]
    assert found.passed


def test_saturation_is_named_when_it_is_the_cause(tmp_path: Path, data: Path) -> None:
    if int8_sums() != "saturating":
        pytest.skip("this processor's 8-bit sums are exact")
    path = saved(classifier(weight=127, bias_scale=0.0005), tmp_path / "model.onnx")
    np.savez(data, x=np.full((5, 64), 12.75, np.float32))  # every activation has code 255
    found = agree([path], data=data, runtimes=[X86], min_agreement=0.9)
    answer = found.answers[1]
    assert answer.cause is not None
    assert answer.cause.startswith("saturation: this processor has no VNNI")
    assert "those of 1 layers (first 'node_y', codes up to 127)" in answer.cause
    assert "agrees on 5 of 5 samples" in answer.cause
    # the kernel cuts 2 * 255 * 127 off at 32767, a half, and gives all classes about the same sum
    assert answer.differs_by is not None
    assert answer.differs_by > 0.4


def test_weights_stored_as_unsigned_mean_the_same_and_do_not_saturate() -> None:
    feeds = {"x": np.full((5, 64), 12.75, np.float32)}
    model = classifier(weight=127, bias_scale=0.0005)
    raised = with_exact_sums(model)
    assert saturable_weights(raised) == []
    with PlainRunner(model) as before, PlainRunner(raised) as after:
        wanted = before.run(feeds)["y"]
        assert np.array_equal(after.run(feeds)["y"], wanted)
    with OnnxRuntimeRunner(raised.SerializeToString()) as exact:
        assert np.allclose(exact.run(feeds)["y"], wanted)
    whole = exported("tiny", X86, int8=True)
    images_ = {INPUT: images(8, 1)[0].numpy()}
    with PlainRunner(whole) as before, PlainRunner(with_exact_sums(whole)) as after:
        assert np.array_equal(before.run(images_)["logits"], after.run(images_)["logits"])


def test_gate_fails_when_a_kernel_reads_another_scale_than_the_file_says(tmp_path: Path, data: Path) -> None:
    # ONNX Runtime takes the bias of a Gemm at scale s_x * s_w = 0.0005 without a look at the file's
    path = saved(classifier(weight=1, bias_scale=0.5), tmp_path / "model.onnx")
    np.savez(data, x=np.random.default_rng(0).uniform(0, 12, (40, 64)).astype(np.float32))
    found = agree([path], data=data, runtimes=[X86], min_agreement=0.99)
    assert found.pairs[0].agreeing == 0
    assert found.pairs[0].passed is False
    assert not found.passed
    assert found.answers[1].cause is None
    assert agree([path], data=data, runtimes=[X86]).passed  # nothing was asked


def test_one_sample_may_always_differ() -> None:
    a = np.eye(4)[np.zeros(10, int)]
    for wrong, passed in ((0, True), (1, True), (2, False)):
        b = a.copy()
        b[:wrong] = np.eye(4)[3]
        assert judged(compared(a, b, names=("r", "b")), "r", 1.0).passed is passed
    assert judged(compared(a, a, names=("x", "b")), "r", 1.0).passed is None


def test_labels_give_accuracies_and_limit_takes_the_first(model: Path, data: Path) -> None:
    with PlainRunner(model) as runner:
        logits = runner.run({"x": np.load(data)["x"]})["y_dq"]
    wanted = float((logits[:8].argmax(1) == np.arange(8) % 4).mean())
    found = agree([model], data=data, runtimes=[X86], limit=8)
    assert found.samples == 8
    assert found.answers[0].accuracy == wanted


def test_fixed_batch_leaves_out_what_does_not_fill_one(tmp_path: Path, data: Path, model: Path) -> None:
    fixed = read_model(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    del fixed.graph.value_info[:]
    found = agree([model, saved(fixed, tmp_path / "three.onnx")], data=data, runtimes=[X86])
    assert found.samples == 18
    assert [row.name for row in found.answers[:2]] == [f"model.onnx on {PLAIN}", f"three.onnx on {PLAIN}"]
    assert len(found.pairs) == 6
    assert found.pairs[0].max_abs_diff == 0.0


def test_openvino_agrees_with_the_reference(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed. Install edgekd[openvino].")
    path = saved(exported("tiny", X86, int8=True), tmp_path / "tiny.onnx")
    np.savez(data, x=images(64, 1)[0].numpy())
    found = agree([path], data=data, runtimes=[X86, "openvino"], min_agreement=0.95)
    assert found.passed
    assert {pair.b: pair.n for pair in found.pairs if pair.a == found.reference} == {
        f"tiny.onnx on {X86}": 64,
        "tiny.onnx on openvino": 64,
    }


def test_every_runtime_is_known_by_name() -> None:
    assert runtime_names()[0] == PLAIN
    assert {X86, "onnxruntime_arm", "tensorrt", EMULATED} <= set(runtime_names())


def test_runtimes_that_are_not_here_are_listed_unless_asked_for(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(USERLAND, raising=False)
    found = agree([model], data=data, limit=2)
    assert X86 in {row.runtime for row in found.answers}
    assert "EDGEKD_ARM64_USERLAND is not set" in found.missing[EMULATED]
    assert "is for aarch64 processors" in found.missing["onnxruntime_arm"]
    with pytest.raises(BackendMissing, match=r"emulated_arm64 needs an arm64 userland.*arm64_userland\.sh FOLDER"):
        agree([model], data=data, runtimes=[EMULATED])


@pytest.mark.parametrize(
    ("runtimes", "text"),
    [
        (["onnxruntime_x68"], "no runtime 'onnxruntime_x68'. Did you mean 'onnxruntime_x86'"),
        ([PLAIN], "no two answers to compare"),
    ],
)
def test_wrong_runtimes_are_refused(runtimes: list[str], text: str, model: Path, data: Path) -> None:
    with pytest.raises(UsageError, match=text):
        agree([model], data=data, runtimes=runtimes)


def test_wrong_files_and_data_are_refused(tmp_path: Path, model: Path, data: Path) -> None:
    with pytest.raises(ModelFileError, match=r"missing\.onnx: no such file"):
        agree([tmp_path / "missing.onnx"], data=data)
    with pytest.raises(DataError, match="no such file or folder"):
        agree([model], data=tmp_path / "missing.npz", runtimes=[X86])
    with pytest.raises(UsageError, match=r"min_agreement must be in \[0, 1\], got 99"):
        agree([model], data=data, min_agreement=99.0)
    with pytest.raises(UsageError, match="limit must be at least 1"):
        agree([model], data=data, runtimes=[X86], limit=0)
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        agree([tmp_path / "broken.onnx"], data=data, runtimes=[X86])


@pytest.mark.parametrize(
    ("codes", "saturates"),
    [
        ([64, 64], False),
        ([64, 65], True),
        ([-64, -64], False),
        ([-65, -64], True),
        ([127, -127], False),
        ([9], False),
        ([1, 127, 127, 1], False),
    ],
)
def test_neighbouring_weights_are_saturable_when_their_sum_exceeds_sixteen_bits(
    codes: list[int], saturates: bool
) -> None:
    # 255 * 128 = 32640 and 255 * 129 = 32895; 16 bits hold 32767
    rows = np.zeros((4, 8), np.int8)
    rows[2, : len(codes)] = codes
    # of a convolution the inputs of one place are neighbours
    kernels = np.moveaxis(rows.reshape(4, 2, 2, 2), -1, 1).copy()
    for op, stored in (("Gemm", rows), ("MatMul", rows.T.copy()), ("Conv", kernels)):
        graph = QdqGraph()
        graph.constant("w_q", stored)
        graph.constant("s", np.float32(0.01))
        graph.constant("z", np.int8(0))
        weight = graph.op("DequantizeLinear", ["w_q", "s", "z"], "w")
        attributes = {"transB": 1} if op == "Gemm" else {}
        model = graph.model(
            graph.op(op, [graph.pair("x"), weight], "y", **attributes),
            shape=("B", 2, 4, 4) if op == "Conv" else ("B", 8),
        )
        found = saturable_weights(model)
        assert [(one.name, one.share) for one in found] == ([("node_y", 0.25)] if saturates else [])
        assert all(one.largest_code == max(map(abs, codes)) for one in found)


def test_weights_of_a_reduced_range_never_saturate() -> None:
    assert saturable_weights(exported("tiny", X86, int8=True)) == []


def test_plain_runner_computes_what_the_file_means() -> None:
    graph = QdqGraph()
    rounded = graph.pair("x", scale=0.5, zero=10)
    with PlainRunner(graph.model(graph.op("Add", [rounded, rounded], "y"), shape=("B", 2))) as runner:
        found = runner.run({"x": np.array([[0.3, -100.0]], np.float32)})["y"]
    assert found.tolist() == [[1.0, -10.0]]  # 0.3 is rounded to 0.5, -100 is cut off at -10 * 0.5
    with pytest.raises(RuntimeError, match="closed"):
        runner.run({"x": np.zeros((1, 2), np.float32)})


def test_plain_runner_says_what_the_model_takes_when_fed_wrongly(model: Path) -> None:
    with PlainRunner(model) as runner, pytest.raises(MismatchError, match=r"The model takes 'x' float32"):
        runner.run({"image": np.zeros((1, C, H, H), np.float32)})


def test_script_of_the_emulated_process_answers_and_goes_on_after_an_error(model: Path, tmp_path: Path) -> None:
    feeds, out = tmp_path / "feeds.npz", tmp_path / "out.npz"
    values = np.random.default_rng(0).standard_normal((2, C, H, H)).astype(np.float32)
    np.savez(feeds, x=values)
    np.savez(tmp_path / "wrong.npz", x=values[:, :1])
    asked = [{"feeds": str(tmp_path / "wrong.npz"), "out": str(out)}, {"feeds": str(feeds), "out": str(out)}]
    lines = "".join(json.dumps(one) + "\n" for one in asked)
    command = [sys.executable, "-P", _arm64_run.__file__, str(model), "1"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    about, wrong, right = (json.loads(line) for line in done.stdout.splitlines())
    assert about["provider"] == "CPUExecutionProvider"
    assert "InvalidArgument" in wrong["error"]
    assert right == {}
    with PlainRunner(model) as runner:
        assert np.load(out)["output0"].shape == runner.run({"x": values})["y_dq"].shape
    done = subprocess.run([*command[:-2], str(feeds), "1"], capture_output=True, text=True, check=True)
    assert "error" in json.loads(done.stdout)


def test_folder_that_is_no_userland_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USERLAND, str(tmp_path))
    with pytest.raises(BackendMissing, match=r"is no arm64 userland: it has no root/usr/bin/python3\.11"):
        userland_folder()
    with pytest.raises(BackendMissing, match="is no arm64 userland"):
        userland_folder(tmp_path / "other")


@pytest.fixture
def userland() -> Path:
    if not os.environ.get(USERLAND):
        pytest.skip(f"{USERLAND} is not set: no arm64 userland here (benchmarks/arm64_userland.sh makes one)")
    return userland_folder()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "mobilenet_v2"])
def test_emulated_arm_computes_the_codes_that_were_trained(family: str, userland: Path, tmp_path: Path) -> None:
    path = saved(exported(family, "onnxruntime_arm", int8=True), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=images(32, 1)[0].numpy())
    found = agree([path], data=tmp_path / "data.npz", runtimes=[EMULATED], userland=userland, min_agreement=0.95)
    assert found.passed
    assert found.pairs[0].max_rel_diff < 0.03
    assert "aarch64, emulated" in found.answers[1].version


@pytest.mark.slow
def test_emulated_arm_refuses_what_it_cannot_load(userland: Path, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph([helper.make_node("Magic", ["x"], ["y"], domain="acme")], "graph", [value], [result])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    path = saved(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "model.onnx")
    model = read_model(path)
    with pytest.raises(ModelFileError, match=r"ONNX Runtime on arm64 refuses the model: .*acme"):
        EmulatedArm64Runner(path, model_inputs(model), model_outputs(model), userland=userland)


@pytest.mark.slow
def test_file_for_another_runtime_is_compared_with_an_onnx_file(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="executorch is not installed. Install edgekd[xnnpack].")
    from int8_models import program, target

    inputs = images(24, 1)[0]
    xnnpack = target("xnnpack")
    pte = xnnpack.write(program("tiny", "xnnpack"), inputs[:1], tmp_path / "tiny.pte", int8=True, metadata={})
    path = saved(exported("tiny", X86, int8=True), tmp_path / "tiny.onnx")
    np.savez(tmp_path / "data.npz", **{INPUT: inputs.numpy()})
    found = agree([path, pte], data=tmp_path / "data.npz", runtimes=[X86, "xnnpack"], min_agreement=0.9)
    assert [row.name for row in found.answers] == [
        f"tiny.onnx on {PLAIN}",
        f"tiny.onnx on {X86}",
        "tiny.pte on xnnpack",
    ]
    assert found.passed
    with pytest.raises(UsageError, match=r"xnnpack runs \.pte files, and none was given"):
        agree([path], data=tmp_path / "data.npz", runtimes=["xnnpack"])
