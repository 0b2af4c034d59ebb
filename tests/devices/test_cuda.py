"""The GPU device without a GPU: what it says then, its sensors, and the engine session on a stand-in driver.

The stand-in (`stand_in_cuda.c`) shows that buffers, copies, graphs and their fallback are put together rightly. What
the GPU itself does is only shown by the tests marked `gpu`.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekd.agent.cuda import CudaError, Driver
from edgekd.agent.engine_session import EngineSession, GpuRefusal
from edgekd.agent.gpu import engine_fingerprint, model_sha256, open_model
from edgekd.agent.sessions import engine_placements
from edgekd.devices._base import open_place
from edgekd.devices._gpu_place import GpuPlace
from edgekd.devices._gpu_smi import QUERY, gpu_state, throttle_words
from edgekd.devices._place import NodePlacement, Reading, SessionSettings, Timing
from edgekd.devices.cuda import Cuda
from edgekd.errors import BackendMissing

ROW = "NVIDIA H100, GPU-1, 9.0, 550.54.15, 1980, 1980, 2619, 41, 118.25, 700.00, 81559, 512, 3, Enabled, 0x4"


def has_gpu() -> bool:
    try:
        Driver()
    except CudaError:
        return False
    return True


needs_no_gpu = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")


# ---- without a GPU


@needs_no_gpu
@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider", "tensorrt"])
def test_device_says_why_it_is_not_here(provider: str) -> None:
    with pytest.raises(BackendMissing, match=r"cuda: there is no CUDA driver here .* without one use the device cpu"):
        open_place("cuda", {"provider": provider})
    with pytest.raises(BackendMissing, match="there is no CUDA driver here"):
        Cuda(Cuda.Options()).fingerprint()


@needs_no_gpu
def test_engine_is_refused_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT is not installed")
    settings = SessionSettings(provider="tensorrt").model_dump()
    with pytest.raises(GpuRefusal, match="TensorRT needs an NVIDIA GPU: there is no CUDA driver") as refusal:
        open_model(tmp_path / "m.onnx", settings)
    assert refusal.value.kind == "missing"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bacth": "1,1,8"}, "tensorrt has no option bacth; it has batch"),
        ({"sync": "sleep"}, "sync must be spin or blocking"),
        ({"device": "-1"}, "device must be the number of a GPU"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, str], match: str) -> None:
    settings = SessionSettings(provider="tensorrt", provider_options=options).model_dump()
    with pytest.raises(GpuRefusal, match=match) as refusal:
        open_model(tmp_path / "m.onnx", settings)
    assert refusal.value.kind == "usage"


def test_hash_of_a_model_has_the_files_that_it_names(tmp_path: Path) -> None:
    model, other = tmp_path / "m.onnx", tmp_path / "unrelated.bin"
    model.write_bytes(b"...location\x12\x08data.bin...")
    other.write_bytes(b"1")
    alone = model_sha256(model)
    other.write_bytes(b"2")
    assert model_sha256(model) == alone
    (tmp_path / "data.bin").write_bytes(b"weights")
    assert model_sha256(model) != alone


# ---- sensors, from a stand-in nvidia-smi


def smi(folder: Path, row: str, code: int = 0) -> list[str]:
    program = folder / "smi.py"
    program.write_text(
        f"import sys\nassert sys.argv[1:] == ['--query-gpu={QUERY}', '--format=csv,noheader,nounits', '--id=0']\n"
        f"print({row!r})\nsys.exit({code})\n"
    )
    return [sys.executable, str(program)]


def test_state_is_read_and_what_is_not_told_is_none(tmp_path: Path) -> None:
    found = gpu_state(command=smi(tmp_path, ROW))
    assert found is not None
    assert (found["model"], found["compute_capability"], found["driver"]) == ("NVIDIA H100", "9.0", "550.54.15")
    assert (found["clock_mhz"], found["temperature_c"], found["power_w"]) == (1980.0, 41.0, 118.25)
    assert throttle_words(found) == ["power cap"]
    missing = gpu_state(command=smi(tmp_path, ROW.replace("118.25", "[N/A]").replace("41,", "[Not Supported],")))
    assert missing is not None
    assert (missing["power_w"], missing["temperature_c"]) == (None, None)


def test_no_state_where_there_is_no_program_or_no_such_gpu(tmp_path: Path) -> None:
    assert gpu_state(command=["/no/such/nvidia-smi"]) is None
    assert gpu_state(command=smi(tmp_path, "No devices were found", 6)) is None
    assert gpu_state(command=smi(tmp_path, "a, b")) is None
    assert throttle_words({}) is None
    assert throttle_words({"throttle_bits": "0x1"}) == []  # idle is no throttling


# ---- the place around another


class Recorded:
    """A place that notes the sessions that it is asked for; everything else is the processor's."""

    def __init__(self) -> None:
        self.inner = open_place("cpu")
        self.name = "cuda"
        self.sessions: list[SessionSettings] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, model: str, feeds: Any, session: SessionSettings) -> Any:
        self.sessions.append(session)
        return self.inner.run(model, feeds, session)


def test_a_provider_that_the_runtime_lacks_is_refused() -> None:
    with pytest.raises(BackendMissing, match=r"has no CUDAExecutionProvider, only .*Install onnxruntime-gpu"):
        GpuPlace(
            open_place("cpu"), provider="CUDAExecutionProvider", provider_options={}, device=0, facts={"name": "G"}
        )


def test_the_gpu_s_provider_takes_the_place_of_the_default_one_alone() -> None:
    inner = Recorded()
    place = GpuPlace(
        inner, provider="CPUExecutionProvider", provider_options={"device_id": "0"}, device=0, facts={"name": "G"}
    )
    place.provider = "TensorrtExecutionProvider"
    with place:
        asked = place._on_gpu(SessionSettings(provider_options={"trt_fp16_enable": "1"}))
        assert asked.provider == "TensorrtExecutionProvider"
        assert asked.provider_options == {"device_id": "0", "trt_fp16_enable": "1"}
        assert place._on_gpu(SessionSettings(provider=place.provider)).provider_options == {"device_id": "0"}
        kept = SessionSettings(provider="CUDAExecutionProvider")
        assert place._on_gpu(kept) is kept
        about = place.about()
    assert about.details["gpu"]["name"] == "G"
    assert about.providers == ["CPUExecutionProvider"]  # whatever is listed beside it opened no session
    assert about.providers is not None


def test_readings_get_the_gpu_s_state_nearest_in_time() -> None:
    from edgekd.devices._gpu_place import _joined

    readings = [Reading(at_ms=-10.0), Reading(at_ms=1000.0), Reading(at_ms=2000.0, throttled=["hot"])]
    states = [
        (100.0, {"clock_mhz": 900.0}),
        (101.0, {"clock_mhz": 1000.0, "temperature_c": 50.0, "power_w": 100.0}),
        (102.1, {"clock_mhz": 800.0, "throttle_bits": "0x40"}),
    ]
    joined = _joined(readings, states, ended=102.0)
    assert [reading.clocks_mhz for reading in joined] == [[900.0], [1000.0], [800.0]]
    assert joined[1].temperatures_c == {"gpu": 50.0}
    assert joined[1].power_w == 100.0
    assert joined[1].throttled is None
    assert joined[2].throttled == ["hot", "hardware thermal slowdown"]


# ---- the session, on a stand-in driver


class Desk:
    """The stand-in driver, and an engine of Python on its memory: y = 2 x + 1."""

    def __init__(self, library: str) -> None:
        self.driver = Driver(library=library)
        self.library = ctypes.CDLL(library)
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.runs = 0
        self.num_io_tensors = 2
        self.profiler: Any = None
        self.callback = ctypes.CFUNCTYPE(None)(self._compute)
        self.library.stand_in_on_launch(self.callback)
        self.library.stand_in_fail(0, 0)

    # the engine
    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if name == "x" else "OUTPUT")

    def create_execution_context(self) -> Desk:
        return self

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape or (-1, 3)

    # the context
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= 8

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream != 0  # the default stream would make every other one wait
        if not self.library.stand_in_capturing():
            self._compute()
        return True

    def _compute(self) -> None:
        self.runs += 1
        if self.profiler is not None:
            self.profiler.report_layer_time("double_and_one", 0.5)
        count = int(np.prod(self.shape))
        x, y = ((ctypes.c_float * count).from_address(self.addresses[name]) for name in ("x", "y"))
        np.asarray(y)[:] = 2 * np.asarray(x) + 1

    def session(self, **changed: Any) -> EngineSession:
        return EngineSession(None, self, self.driver, provider="tensorrt", **changed)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in driver with")
    built = tmp_path_factory.mktemp("driver") / "libstandin.so"
    source = Path(__file__).with_name("stand_in_cuda.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(built), str(source)], check=True)
    return str(built)


@pytest.fixture
def desk(library: str) -> Iterator[Desk]:
    made = Desk(library)
    before = made.library.stand_in_live()
    yield made
    assert made.library.stand_in_live() == before  # every buffer, stream, event and graph was given back


def feeds(batch: int, start: float = 0.0) -> dict[str, np.ndarray]:
    return {"x": (start + np.arange(3 * batch, dtype=np.float32)).reshape(batch, 3)}


def test_facts_are_the_driver_s(library: str) -> None:
    assert Driver(library=library).facts() == {
        "name": "Stand-in GPU",
        "compute_capability": "8.6",
        "cuda_driver": "12.4",
        "max_clock_mhz": 1500.0,
        "max_memory_clock_mhz": 1500.0,
        "memory_bytes": 2**30,
        "integrated": False,
    }
    with pytest.raises(CudaError, match="GPU 1 was asked for and the driver has 1"):
        Driver(1, library=library)
    with pytest.raises(CudaError, match=r"cuMemAlloc_v2: out of memory \(error 2\)"):
        Driver(library=library).allocate(2**29)
    with pytest.raises(CudaError, match="the CUDA driver has no cuNothing; it is too old"):
        Driver(library=library).call("cuNothing")


@pytest.mark.parametrize("use_graph", [True, False])
@pytest.mark.parametrize("sync", ["spin", "blocking"])
def test_answers_follow_the_feeds_with_and_without_a_graph(desk: Desk, use_graph: bool, sync: str) -> None:
    session = desk.session(use_graph=use_graph, sync=sync)
    for batch, start in ((2, 0.0), (2, 5.0), (1, -1.0), (4, 0.5), (2, 7.0)):
        (answer,) = session.run(feeds(batch, start))
        assert np.array_equal(answer, 2 * feeds(batch, start)["x"] + 1)
    assert (session.note, session.output_names, session.input_name()) == (
        "" if use_graph else "CUDA graph switched off",
        ["y"],
        "x",
    )
    session.close()
    session.close()


def test_an_answer_is_a_copy_and_not_the_buffer(desk: Desk) -> None:
    session = desk.session()
    (first,) = session.run(feeds(2))
    kept = first.copy()
    session.run(feeds(2, 100.0))
    assert np.array_equal(first, kept)
    session.close()


def test_buffers_stay_while_the_shapes_do(desk: Desk) -> None:
    session = desk.session()
    session.run(feeds(2))
    live, addresses = desk.library.stand_in_live(), dict(desk.addresses)
    for start in range(5):
        session.run(feeds(2, start))
    assert (desk.library.stand_in_live(), desk.addresses) == (live, addresses)
    session.run(feeds(3))
    assert desk.library.stand_in_live() == live  # the old ones were given back
    session.close()


def test_every_query_is_timed_in_parts_that_add_up(desk: Desk) -> None:
    session = desk.session()
    times = session.timed(feeds(2), queries=7, warmup=3)
    assert times.cuda_graph
    assert (times.note, times.sync) == ("", "spin")
    rows = list(zip(times.copy_in_ms, times.gpu_ms, times.copy_out_ms, times.host_ms, strict=True))
    assert len(rows) == 7
    for copy_in, gpu, copy_out, host in rows:
        assert min(copy_in, gpu, copy_out) >= 0
        # one clock here; marks are float32 milliseconds, so a microsecond of slack
        assert copy_in + gpu + copy_out <= host + 1e-3
    assert desk.runs == 1 + 3 + 7  # once to prepare, none while it was recorded
    session.close()


@pytest.mark.parametrize(("begin", "end"), [(1, 0), (0, 1)], ids=["cannot begin", "cannot end"])
def test_a_graph_that_cannot_be_recorded_falls_back_with_a_note(desk: Desk, begin: int, end: int) -> None:
    desk.library.stand_in_fail(begin, end)
    session = desk.session()
    times = session.timed(feeds(2), queries=3, warmup=0)
    assert not times.cuda_graph
    assert times.note.startswith("no CUDA graph: cuStream")
    (answer,) = session.run(feeds(1))
    assert np.array_equal(answer, 2 * feeds(1)["x"] + 1)
    session.close()


class Profiler:
    """What TensorRT's own is to whoever derives from it."""


def test_layers_of_an_engine_stand_for_nodes(desk: Desk) -> None:
    session = EngineSession(SimpleNamespace(IProfiler=Profiler), desk, desk.driver, provider="tensorrt")
    for row in engine_placements(session, feeds(2), runs=4):
        placed = NodePlacement(**row)
        assert (placed.provider, placed.op) == ("tensorrt", "Layer")
        assert (placed.node, placed.mean_us) == ("double_and_one", pytest.approx(500.0))
    assert desk.runs == 1 + 3 + 4  # once to prepare, without a graph from then on
    with pytest.raises(RuntimeError, match="the session is closed"):
        session.run(feeds(2))


def test_throughput_counts_what_was_enqueued(desk: Desk) -> None:
    session = desk.session()
    before = desk.library.stand_in_copies()
    rate = session.throughput(feeds(2), seconds=0.01)
    assert rate > 0
    assert desk.library.stand_in_copies() - before == 2  # the one query before: the rest is without copies
    assert (desk.runs - 2) % 16 == 0
    session.close()


@pytest.mark.parametrize(
    "bad",
    [
        {"x": np.zeros((2, 4), np.float32)},
        {"x": np.zeros((2, 3), np.float64)},
        {"z": np.zeros((2, 3), np.float32)},
        {"x": np.zeros((9, 3), np.float32)},
        {"x": np.zeros(3, np.float32)},
        {},
    ],
    ids=["size", "type", "name", "batch beyond the profile", "rank", "nothing"],
)
def test_feeds_that_do_not_fit_are_named(desk: Desk, bad: dict[str, np.ndarray]) -> None:
    session = desk.session()
    with pytest.raises(GpuRefusal, match=r"the engine takes x float32 \[-1, 3\]; got") as refusal:
        session.run(bad)
    assert refusal.value.kind == "mismatch"
    (answer,) = session.run(feeds(1))
    assert np.array_equal(answer, 2 * feeds(1)["x"] + 1)
    session.close()


def test_fingerprint_has_all_that_an_engine_is_bound_to(library: str) -> None:
    facts = Driver(library=library).facts()
    found = engine_fingerprint(facts, "tensorrt", "10.3.0", onnx_sha256="ab", batch=(1, 2, 4))
    assert found["gpu"] == "Stand-in GPU"
    assert found["batch_profile"] == [1, 2, 4]
    assert set(found) == {
        "gpu",
        "compute_capability",
        "library",
        "version",
        "driver_major",
        "onnx_sha256",
        "batch_profile",
        "flags",
    }


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU, there is no CUDA driver here")
def test_device_runs_and_measures_on_the_gpu(tmp_path: Path) -> None:
    from test_adb import FEEDS, net

    try:
        place = open_place("cuda")
    except BackendMissing as missing:
        pytest.skip(str(missing))
    with place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        (answer,) = place.run("net.onnx", [FEEDS], SessionSettings())
        assert np.allclose(answer["y"], 2 * FEEDS["x"] + 1)
        found = place.measure({"m": "net.onnx"}, FEEDS, session=SessionSettings(), timing=Timing(queries=20))
        assert found.models["m"].provider_used == "CUDAExecutionProvider"
