"""A device's program as a process of this machine: what it answers, what it refuses, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.devices._agent_place import AgentPlace
from edgekd.devices._base import open_place
from edgekd.devices._place import EndToEnd, Place, SessionSettings, Timing
from edgekd.devices._program import BOOTSTRAP, Start, agent_archive
from edgekd.errors import BackendMissing, MismatchError, ModelFileError, StorageError, UsageError

from .conftest import dense

SESSION = SessionSettings(cores=None)
SHORT = Timing(queries=5, warmup_min=2, window=1, warmup_max_seconds=0.05)

# flips one bit of the byte at an offset, of what goes to the program ("to") or of what comes from it ("from")
PROXY = """
import subprocess, sys, threading
direction, offset, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

def copy(source, sink, damage):
    seen = 0
    while piece := bytearray(source.read1(65536)):
        if damage and seen <= offset < seen + len(piece):
            piece[offset - seen] ^= 1
        seen += len(piece)
        try:
            sink.write(piece)
            sink.flush()
        except OSError:
            break
    sink.close()

threading.Thread(target=copy, args=(sys.stdin.buffer, child.stdin, direction == "to"), daemon=True).start()
copy(child.stdout, sys.stdout.buffer, direction == "from")
raise SystemExit(child.wait())
"""


@pytest.fixture
def place(there: Path) -> Place:
    return open_place("cpu", {"folder": str(there)})


def through_proxy(there: Path, direction: str, offset: int, silence_seconds: float = 20.0) -> AgentPlace:
    command = [sys.executable, "-c", PROXY, direction, str(offset), sys.executable, "-c", BOOTSTRAP]
    hello = {"folder": str(there)}
    return AgentPlace(Start(name="proxied", command=command, silence_seconds=silence_seconds, hello=hello))


def test_archive_is_the_same_every_time_and_is_the_package() -> None:
    first = agent_archive()
    agent_archive.cache_clear()
    assert agent_archive() == first
    with zipfile.ZipFile(BytesIO(first)) as archive:
        assert {"__main__.py", "serve.py", "frames.py", "cold.py"} <= set(archive.namelist())


def test_what_was_put_is_gone_afterwards(there: Path, model: Path, place: Place, gone: Callable[[Path], None]) -> None:
    with place:
        place.put({"m.onnx": model, "data/w.bin": model})
        found = {file.name: file.read_bytes() for file in there.rglob("*") if file.suffix in (".onnx", ".bin")}
        assert found == {"m.onnx": model.read_bytes(), "w.bin": model.read_bytes()}
    assert list(there.iterdir()) == []
    place.close()


def test_large_and_empty_files_arrive_whole(there: Path, tmp_path: Path, place: Place) -> None:
    sizes = {"empty": 0, "exact": 2 << 20, "odd": (2 << 20) + 7}
    files = {name: tmp_path / name for name in sizes}
    for name, size in sizes.items():
        files[name].write_bytes(np.random.default_rng(size).bytes(size))
    with place:
        place.put(files)
        for name, file in files.items():
            (arrived,) = there.rglob(name)
            assert arrived.read_bytes() == file.read_bytes()


def test_installed_files_stay_and_can_be_run(
    place: Place, there: Path, tmp_path: Path, model: Path, feeds: dict[str, np.ndarray]
) -> None:
    stays = tmp_path / "a folder's name; $(with) signs"
    with place:
        assert isinstance(place, AgentPlace)
        folder = place.install({"sub/m.onnx": model}, str(stays))
        assert folder == str(stays)
        place.put({"m.onnx": model})
        far, near = (place.run(name, [feeds], SESSION) for name in (f"{folder}/sub/m.onnx", "m.onnx"))
        assert np.array_equal(far[0]["y"], near[0]["y"])
        with pytest.raises(UsageError, match="must be absolute or begin with ~, got 'models'"):
            place.install({"m.onnx": model}, "models")
        with pytest.raises(
            StorageError, match=r"m.onnx \(\d+ bytes\) cannot be written there: (Not a directory|File exists)"
        ):
            place.install({"m.onnx": model}, f"{folder}/sub/m.onnx")
    assert [file.name for file in stays.rglob("*") if file.is_file()] == ["m.onnx"]
    assert list(there.iterdir()) == []


@pytest.mark.parametrize("name", ["/etc/cron.d/x", "../x", "a\\..\\x", ""])
def test_name_that_leads_elsewhere_is_refused(place: Place, model: Path, name: str) -> None:
    with place, pytest.raises(UsageError, match="is no name for a file on a device"):
        place.put({name: model})


def test_many_feeds_are_answered_in_order(place: Place, model: Path) -> None:
    feeds = [{"x": np.full((1, 16), float(number), np.float32)} for number in range(600)]  # more than one request
    with place:
        place.put({"m.onnx": model})
        answers = place.run("m.onnx", feeds, SESSION)
    assert len(answers) == 600
    assert np.allclose(answers[599]["y"], 599 * answers[1]["y"], rtol=1e-5)


def test_readings_surround_the_queries_and_memory_is_told(
    place: Place, model: Path, feeds: dict[str, np.ndarray]
) -> None:
    told: list[tuple[int, int]] = []
    with place:
        place.put({"m.onnx": model})
        timing = Timing(queries=10**6, max_seconds=1.5, warmup_max_seconds=0.1, readings_seconds=0.3)
        measured = place.measure(
            {"m": "m.onnx"}, feeds, session=SESSION, timing=timing, progress=lambda *done: told.append(done)
        )
    at = [reading.at_ms for reading in measured.readings]
    assert at == sorted(at)
    assert at[0] < 0
    assert at[-1] >= measured.models["m"].started_ms[-1]
    assert 5 <= len(at) <= 8
    assert 1 <= len(told) <= 3  # about once a second
    assert all(reading.memory_bytes and reading.memory_bytes > 1 << 20 for reading in measured.readings)
    assert measured.cores == []


def test_pinned_program_says_its_cores(place: Place, model: Path, feeds: dict[str, np.ndarray]) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    with place:
        place.put({"m.onnx": model})
        last = SessionSettings(cores=[allowed[-1]])
        assert place.measure({"m": "m.onnx"}, feeds, session=last, timing=SHORT).cores == [allowed[-1]]
        fastest = place.measure({"m": "m.onnx"}, feeds, session=SessionSettings(), timing=SHORT).cores
        assert len(fastest) == 1
        with pytest.raises(UsageError, match=r"cores \[4095\] are not among those that may be used there"):
            place.measure({"m": "m.onnx"}, feeds, session=SessionSettings(cores=[4095]), timing=SHORT)
        with pytest.raises(UsageError, match=r"threads must be 1 to \d+, the cores that may be used there, got 4095"):
            place.measure({"m": "m.onnx"}, feeds, session=SessionSettings(threads=4095), timing=SHORT)


def test_end_to_end_times_the_stages_around_the_inference(place: Place, tmp_path: Path) -> None:
    shape = [1, 1, 8, 8]
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])],
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
    )
    flat = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    flat.ir_version = 8
    onnx.save(flat, tmp_path / "flat.onnx")
    np.save(tmp_path / "image.npy", np.arange(16 * 16, dtype=np.uint8).reshape(16, 16, 1))
    preprocessing = {"size": [8, 8], "channels": 1, "mean": [0.5], "std": [0.5], "resize": "bilinear"}
    around = EndToEnd(image="image.npy", preprocessing=preprocessing)
    with place:
        place.put({"flat.onnx": tmp_path / "flat.onnx", "image.npy": tmp_path / "image.npy"})
        timing = SHORT.model_copy(update={"end_to_end": around})
        timed = place.measure({"m": "flat.onnx"}, {}, session=SESSION, timing=timing).models["m"]
        with pytest.raises(MismatchError, match=r"image uint8 \[16, 16, 1\] does not fit"):
            place.measure(
                {"m": "flat.onnx"},
                {},
                session=SESSION,
                timing=SHORT.model_copy(update={"end_to_end": EndToEnd(image="image.npy")}),
            )
    assert [len(timed.samples_ms), len(timed.preprocess_ms), len(timed.postprocess_ms)] == [5, 5, 5]
    assert min(*timed.samples_ms, *timed.preprocess_ms, *timed.postprocess_ms) > 0


def test_feeds_that_do_not_fit_are_named(place: Place, model: Path) -> None:
    with place:
        place.put({"m.onnx": model})
        wrong = {"x": np.zeros((1, 3), np.float32)}
        with pytest.raises(
            MismatchError, match=r"cpu: m.onnx: .*The model takes x tensor\(float\).*got x float32 \[1, 3"
        ):
            place.run("m.onnx", [wrong], SESSION)
        with pytest.raises(MismatchError, match=r"got nothing"):
            place.measure({"m": "m.onnx"}, {}, session=SESSION, timing=SHORT)
        with pytest.raises(MismatchError, match=r"'x' has element type .*fed with numbers only"):
            place.run("m.onnx", [{"x": np.array(["word"])}], SESSION)


def test_cold_start_grows_with_the_model(place: Place, tmp_path: Path, feeds: dict[str, np.ndarray]) -> None:
    sizes = {"small": 16, "large": 2048}
    found = {}
    with place:
        for name, size in sizes.items():
            place.put({name: dense(tmp_path / name, size=size, classes=1024)})
            x = np.zeros((1, size), np.float32)
            [found[name]] = place.cold(name, {"x": x}, session=SESSION, repeats=1)
        with pytest.raises(UsageError, match="repeats must be at least 1, got 0"):
            place.cold("small", feeds, session=SESSION, repeats=0)
    small, large = found["small"], found["large"]
    # a 2048 x 1024 float32 matrix is 8 MiB
    assert large.peak_bytes - large.baseline_bytes > small.peak_bytes - small.baseline_bytes + 6 * 2**20
    assert min(small.process_ms, small.load_ms, small.first_ms) > 0
    assert small.provider_used == SESSION.provider


def test_model_that_was_not_put_is_named(place: Place, feeds: dict[str, np.ndarray]) -> None:
    with place, pytest.raises(BackendMissing, match=r"'m.onnx' was not put there"):
        place.run("m.onnx", [feeds], SESSION)


def test_damaged_model_is_refused_by_the_runtime_there(
    place: Place, tmp_path: Path, feeds: dict[str, np.ndarray]
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x08 no model")
    with place:
        place.put({"bad.onnx": tmp_path / "bad.onnx"})
        with pytest.raises(ModelFileError, match=r"cpu: bad.onnx: ONNX Runtime \d+\.\d+\.\d+ there refuses the model"):
            place.run("bad.onnx", [feeds], SESSION)
        with pytest.raises(ModelFileError, match=r"bad.onnx does not load and run in a new process"):
            place.cold("bad.onnx", feeds, session=SESSION, repeats=1)


@pytest.mark.parametrize(
    ("opset", "ir_version", "match"),
    [
        (
            17,
            99,
            r"refuses the model: it has IR version 99, and that runtime reads up to \d+. Update onnxruntime there",
        ),
        (99, 8, r"refuses the model: it has opset 99, and that runtime reads up to \d+. Update onnxruntime there"),
    ],
)
def test_model_newer_than_the_runtime_says_both_numbers(
    place: Place, tmp_path: Path, feeds: dict[str, np.ndarray], opset: int, ir_version: int, match: str
) -> None:
    newer = dense(tmp_path / "newer.onnx", opset=opset, ir_version=ir_version)
    with place:
        place.put({"newer.onnx": newer})
        with pytest.raises(ModelFileError, match=match):
            place.run("newer.onnx", [feeds], SESSION)


def test_provider_that_is_not_there_is_named(place: Place, model: Path, feeds: dict[str, np.ndarray]) -> None:
    session = SessionSettings(provider="QNNExecutionProvider")
    with place:
        place.put({"m.onnx": model})
        with pytest.raises(
            BackendMissing, match=r"there has no QNNExecutionProvider, but \['.*CPUExecutionProvider'\]"
        ):
            place.run("m.onnx", [feeds], session)


def test_full_disk_says_what_is_free(tmp_path: Path, there: Path) -> None:
    import resource

    (tmp_path / "large").write_bytes(bytes(100_000))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, {resource.RLIM_INFINITY})); "
    start = Start(name="small", command=[sys.executable, "-c", limit + BOOTSTRAP], hello={"folder": str(there)})
    with AgentPlace(start) as place:
        with pytest.raises(
            StorageError, match=r"small: large \(100000 bytes\) cannot be written there: File too large; "
        ):
            place.put({"large": tmp_path / "large"})
        assert not list(there.rglob("large*"))


@pytest.mark.parametrize("offset", [100, 5000])
def test_program_damaged_on_its_way_is_not_run(there: Path, offset: int) -> None:
    with pytest.raises(BackendMissing, match="the bytes of the program were damaged on the way"):
        through_proxy(there, "to", offset)
    assert list(there.iterdir()) == []


@pytest.mark.parametrize("direction", ["to", "from"])
def test_damaged_byte_on_the_way_is_found(
    there: Path, tmp_path: Path, direction: str, gone: Callable[[Path], None]
) -> None:
    big = tmp_path / "big.onnx"
    dense(big, size=60_000)
    feeds = [{"x": np.zeros((1, 60_000), np.float32)}]
    # behind the program and the greeting; the other way, in the answer to a request for a result
    offset = len(agent_archive()) + 200_000 if direction == "to" else 900
    with through_proxy(there, direction, offset) as place, pytest.raises(BackendMissing, match=r"Nothing that arrived"):
        _use(place, big, feeds)
    with pytest.raises(BackendMissing, match=r"bytes were damaged on the way \(|is closed"):
        place._channel.ask({"do": "about"})
    gone(there)


def _use(place: Place, file: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    place.put({"big.onnx": file})
    for _ in range(20):
        place.run("big.onnx", feeds, SESSION)


def test_device_that_never_speaks_is_left() -> None:
    began = time.monotonic()
    with pytest.raises(BackendMissing, match=r"quiet: nothing came from it for 0.5 s; it hangs"):
        AgentPlace(Start(name="quiet", command=["sleep", "60"], silence_seconds=0.5))
    assert time.monotonic() - began < 10.0


def test_shell_that_never_stops_greeting_is_left() -> None:
    with pytest.raises(BackendMissing, match="its shell prints without end"):
        AgentPlace(Start(name="chatty", command=["yes", "Welcome to this machine"]))


def test_command_that_is_not_there_is_named() -> None:
    with pytest.raises(BackendMissing, match="nowhere: 'edgekd-no-such-program' does not start: No such file"):
        AgentPlace(Start(name="nowhere", command=["edgekd-no-such-program"]))


def test_host_that_is_killed_leaves_nothing(there: Path, model: Path, gone: Callable[[Path], None]) -> None:
    program = (
        "import sys, pathlib, numpy as np\n"
        "from edgekd.devices._base import open_place\n"
        "from edgekd.devices._place import SessionSettings, Timing\n"
        "place = open_place('cpu', {'folder': sys.argv[1]})\n"
        "place.put({'m.onnx': pathlib.Path(sys.argv[2])})\n"
        "print('ready', flush=True)\n"
        "feeds = {'x': np.zeros((1, 16), np.float32)}\n"
        "place.measure({'m': 'm.onnx'}, feeds, session=SessionSettings(), timing=Timing(queries=10**9))\n"
    )
    host = subprocess.Popen([sys.executable, "-c", program, str(there), str(model)], stdout=subprocess.PIPE)
    assert host.stdout is not None
    assert host.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    assert len(list(there.iterdir())) == 1
    host.kill()
    host.wait()
    host.stdout.close()
    gone(there)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_program_that_is_asked_to_end_tidies_up(
    there: Path, model: Path, gone: Callable[[Path], None], number: signal.Signals
) -> None:
    with open_place("cpu", {"folder": str(there)}) as place:
        assert isinstance(place, AgentPlace)
        place.put({"m.onnx": model})
        os.kill(int(place._channel.hello["pid"]), number)
        gone(there)
        with pytest.raises(BackendMissing, match=r"the program there ended with exit code 143|was ended by signal"):
            place.about()


def test_closed_place_says_so(place: Place) -> None:
    place.close()
    with pytest.raises(RuntimeError, match="the connection to cpu is closed"):
        place.about()
