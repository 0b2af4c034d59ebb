"""Engines for named compute capabilities on a machine that may have no GPU."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq_graphs import CHANNELS, SHAPE, Graph, float_net, residual_net

from edgekd.errors import BackendMissing, GateFailed, MismatchError, ModelFileError, StorageError, UsageError
from edgekd.targets._engine import TensorRTRunner, build_engine, compute_capabilities, parse, trt_library
from edgekd.targets._float16 import to_float16
from edgekd.targets._trt_runner import cuda_capability

try:
    LIBRARY = trt_library()
except BackendMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = pytest.mark.tensorrt
BATCH = (1, 4, 8)
GPU = cuda_capability()
AHEAD = compute_capabilities()


def _saved(folder: Path, model: onnx.ModelProto, name: str = "model") -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path


def _ahead(capability: str) -> str:
    if capability not in AHEAD:
        pytest.skip(f"{LIBRARY[1]} {LIBRARY[2]} does not build ahead of time for {capability}")
    return capability


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)  # what Python itself puts there to stop an import
    with pytest.raises(BackendMissing, match=r"Install edgekd\[tensorrt\]"):
        trt_library.__wrapped__()


def test_parse_lists_layers_and_dynamic_batch() -> None:
    network = parse(residual_net().SerializeToString())

    assert network.counts["CONVOLUTION"] == 2
    assert network.counts["QUANTIZE"] == 3
    assert network.counts["MATRIX_MULTIPLY"] == 1
    assert [(spec.name, spec.dtype, spec.shape) for spec in network.inputs] == [("x", "float32", list(SHAPE))]
    assert network.precision == "int8+float32"


def test_precision_is_what_the_file_says_when_the_rest_is_float16() -> None:
    assert parse(float_net().SerializeToString()).precision == "float32"
    assert parse(to_float16(float_net()).SerializeToString()).precision == "float16"
    assert parse(to_float16(residual_net()).SerializeToString()).precision == "int8+float16"


@pytest.mark.parametrize(
    ("capability", "half"),
    [("7.5", True), ("8.0", True), ("8.6", False), ("8.6", True), ("8.9", False), ("8.9", True), ("12.0", True)],
)
def test_engine_is_built_for_a_named_capability(tmp_path: Path, capability: str, half: bool) -> None:
    model = to_float16(residual_net()) if half else residual_net()
    path = _saved(tmp_path, model)

    built = build_engine(path, compute_capability=_ahead(capability), batch=BATCH, out=tmp_path / "engines")

    _, library, version = LIBRARY
    short = ".".join(version.split(".")[:3])
    assert built.path.name == f"model-{library}-{short}-sm{capability.replace('.', '')}.engine"
    assert built.path.stat().st_size > 10_000
    assert built.fingerprint == {
        "library": library,
        "version": version,
        "compute_capability": capability,
        "batch_profile": [1, 4, 8],
        "precision": "int8+float16" if half else "int8+float32",
        "onnx_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert json.loads(built.path.with_name(f"{built.path.name}.json").read_text())["fingerprint"] == built.fingerprint
    assert sorted(file.suffix for file in (tmp_path / "engines").iterdir()) == [".engine", ".json"]


def test_engine_needs_no_profile_when_the_shape_is_fixed(tmp_path: Path) -> None:
    graph = Graph()
    path = _saved(tmp_path, graph.model(graph.conv(graph.pair("x")), shape=(2, CHANNELS, 8, 8)))

    built = build_engine(path, compute_capability=_ahead("8.6"), batch=BATCH, out=tmp_path)

    assert built.path.is_file()


def test_int8_engine_is_smaller_than_float_when_weights_dominate(tmp_path: Path) -> None:
    sizes = {}
    for name in ("int8", "float"):
        graph = Graph()
        weights = graph.weights(1024, 1024) if name == "int8" else graph.constant(np.ones((1024, 1024), np.float32))
        data = graph.pair("x") if name == "int8" else "x"
        path = _saved(tmp_path, graph.model(graph.node("Gemm", data, weights, transB=1), shape=("B", 1024)), name)
        built = build_engine(path, compute_capability=_ahead("8.6"), batch=BATCH, out=tmp_path)
        sizes[name] = built.path.stat().st_size

    # the weights alone are 4 MiB against 1 MiB; the compiled kernels, some hundred KiB each, are the rest
    assert sizes["float"] - sizes["int8"] > 2 * 2**20


def test_timing_cache_is_left_alone_when_building_ahead_of_time(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    cache = tmp_path / "timing.cache"
    path = _saved(tmp_path, residual_net())
    build_engine(path, compute_capability=_ahead("8.6"), batch=BATCH, out=tmp_path, timing_cache=cache)
    assert not cache.exists()
    assert not recwarn.list


def test_turing_is_told_to_take_float16_when_the_rest_is_float32(tmp_path: Path) -> None:
    path = _saved(tmp_path, residual_net())
    with pytest.raises(GateFailed, match=r"FP32 GEMM is not supported.*7\.5 wants the float rest in float16"):
        build_engine(path, compute_capability=_ahead("7.5"), batch=BATCH, out=tmp_path)


def test_capability_is_refused_with_the_known_ones_when_unknown(tmp_path: Path) -> None:
    _ahead("8.6")
    path = _saved(tmp_path, float_net())
    with pytest.raises(
        UsageError, match=r"does not build for compute capability 5\.0\. It builds for 7\.5, 8\.0, 8\.6"
    ):
        build_engine(path, compute_capability="5.0", batch=BATCH, out=tmp_path)
    with pytest.raises(UsageError, match=r"must be like '8\.6', got 'sm86'"):
        build_engine(path, compute_capability="sm86", batch=BATCH, out=tmp_path)


def test_batch_is_refused_when_out_of_order(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1 <= min <= opt <= max, got \(8, 4, 16\)"):
        build_engine(tmp_path / "m.onnx", compute_capability="8.6", batch=(8, 4, 16), out=tmp_path)


def test_input_is_refused_when_dynamic_beyond_its_batch(tmp_path: Path) -> None:
    graph = Graph()
    path = _saved(tmp_path, graph.model(graph.node("Relu", "x"), shape=("B", 3, "H", "W")))
    with pytest.raises(UsageError, match=r"'x' .* is dynamic beyond its batch"):
        build_engine(path, compute_capability=_ahead("8.6"), batch=BATCH, out=tmp_path)


def test_refused_node_is_named_with_its_cause(tmp_path: Path) -> None:
    graph = Graph()
    bias = graph.node(
        "DequantizeLinear",
        graph.constant(np.arange(CHANNELS, dtype=np.int32)),
        graph.constant(np.full(CHANNELS, 1e-4, np.float32)),
    )
    path = _saved(tmp_path, graph.model(graph.conv(graph.pair("x"), bias=bias)))
    with pytest.raises(GateFailed, match=r"conv\d \(Conv\): the int32 bias of 'dequantizelinear0'"):
        parse(path)


def test_parser_error_names_the_node_when_the_operator_is_unknown_to_it() -> None:
    graph = Graph()
    y = graph.node("Det", "x")
    with pytest.raises(GateFailed, match=r"det0 \(Det\)") as error:
        parse(graph.model(y, shape=("B", 4, 4)).SerializeToString())
    assert "driver" not in str(error.value)


def test_corrupt_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(residual_net().SerializeToString()[:200])
    with pytest.raises(ModelFileError, match="truncated"):
        build_engine(path, compute_capability=_ahead("8.6"), batch=BATCH, out=tmp_path)


def test_output_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    path = _saved(tmp_path, float_net())
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match=r"taken.*cannot be written"):
        build_engine(path, compute_capability=_ahead("8.6"), batch=BATCH, out=tmp_path / "taken")


def test_nothing_is_printed_when_building(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build_engine(_saved(tmp_path, float_net()), compute_capability=_ahead("8.6"), batch=BATCH, out=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_running_says_which_gpu_is_needed_when_it_is_not_here(tmp_path: Path) -> None:
    other = next(capability for capability in reversed(AHEAD or ["8.6"]) if capability != GPU)
    built = build_engine(_saved(tmp_path, float_net()), compute_capability=_ahead(other), batch=BATCH, out=tmp_path)
    with pytest.raises(
        BackendMissing, match=f"sm{other.replace('.', '')}.engine needs a GPU of compute capability {other}"
    ):
        TensorRTRunner(built.path)


def test_engine_is_refused_when_damaged_or_without_its_sidecar(tmp_path: Path) -> None:
    built = build_engine(_saved(tmp_path, float_net()), compute_capability=_ahead("8.6"), batch=BATCH, out=tmp_path)
    built.path.write_bytes(built.path.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=r"not the engine its \.json describes, or is damaged"):
        TensorRTRunner(built.path)
    built.path.with_name(f"{built.path.name}.json").unlink()
    with pytest.raises(ModelFileError, match=r"An engine and its \.json travel together"):
        TensorRTRunner(built.path)


@pytest.mark.gpu
@pytest.mark.skipif(GPU is None, reason="running an engine needs a GPU, torch sees none here")
def test_engine_gives_the_answers_of_onnxruntime(tmp_path: Path) -> None:
    import onnxruntime

    if AHEAD and GPU not in AHEAD:
        pytest.skip(f"{LIBRARY[1]} {LIBRARY[2]} does not build for this GPU, of compute capability {GPU}")
    path = _saved(tmp_path, residual_net())
    built = build_engine(path, compute_capability=str(GPU), batch=BATCH, out=tmp_path)
    feeds = {"x": np.random.default_rng(1).normal(size=(3, *SHAPE[1:])).astype(np.float32)}
    with TensorRTRunner(built.path) as runner:
        (mine,) = runner.run(feeds).values()
        with pytest.raises(MismatchError, match="with B from 1 to 8"):
            runner.run({"x": np.zeros((9, CHANNELS, 8, 8), np.float32)})
    (theirs,) = onnxruntime.InferenceSession(str(path)).run(None, feeds)
    # both round to the same int8 grid, so they differ by the odd code and by float summation order
    assert np.abs(mine - theirs).max() < 0.05 * np.abs(theirs).max()
