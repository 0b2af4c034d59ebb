"""Engines that are kept beside their model: found, told apart, thrown away when damaged, never built twice at once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from qdq_graphs import float_net, residual_net

from edgekd.agent.engines import fingerprint_name, kept_engine, timing_name, write_whole
from edgekd.errors import BackendMissing, StorageError, UsageError

WANTED: dict[str, Any] = {
    "gpu": "GPU A",
    "compute_capability": "8.7",
    "library": "tensorrt",
    "version": "10.3.0.30",
    "driver_major": "540",
    "onnx_sha256": "ab",
    "batch_profile": [1, 1, 8],
    "flags": ["strongly_typed"],
}


class Builder:
    """Notes the timings that it was given; every engine is another one."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def __call__(self, timings: bytes) -> tuple[bytes, bytes]:
        self.given.append(timings)
        return b"plan %d" % len(self.given), timings + b"t"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def test_an_engine_is_built_once_and_then_found(tmp_path: Path) -> None:
    make = Builder()
    first = kept_engine(tmp_path / "e", "net", WANTED, make, facts={"inputs": [1]})
    again = kept_engine(tmp_path / "e", "net", WANTED, make)
    assert (first.built, again.built, len(make.given)) == (True, False, 1)
    assert first.plan == again.plan == b"plan 1"
    assert first.messages == [f"{first.path.name}: built, there was none."]
    assert again.messages == []
    assert again.sidecar == {
        "fingerprint": WANTED,
        "engine_sha256": hashlib.sha256(b"plan 1").hexdigest(),
        "inputs": [1],
    }
    name = f"net-{fingerprint_name(WANTED)}.engine"
    assert names(tmp_path / "e") == sorted([name, f"{name}.json", timing_name(WANTED)])


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("gpu", "GPU B", "was built for gpu GPU A and this is GPU B, so another is built"),
        ("driver_major", "550", "was built for driver major 540 and this is 550"),
        ("version", "10.4.0.1", r"was built for version 10.3.0.30 and this is 10.4.0.1"),
        ("batch_profile", [1, 4, 8], r"was built for batch profile \[1, 1, 8\] and this is \[1, 4, 8\]"),
        ("onnx_sha256", "cd", "was built from another ONNX file"),
    ],
)
def test_what_an_engine_was_built_for_is_told_when_it_does_not_fit(
    tmp_path: Path, key: str, value: Any, match: str
) -> None:
    import re

    make = Builder()
    kept_engine(tmp_path, "net", WANTED, make)
    other = kept_engine(tmp_path, "net", {**WANTED, key: value}, make)
    assert (other.built, other.plan) == (True, b"plan 2")
    assert re.search(match, other.messages[0])
    # and the first is still there for who needs it
    assert not kept_engine(tmp_path, "net", WANTED, make).built


def damaged(path: Path) -> None:
    path.write_bytes(b"x" + path.read_bytes()[1:])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def sidecar_gone(path: Path) -> None:
    path.with_name(f"{path.name}.json").unlink()


def sidecar_damaged(path: Path) -> None:
    path.with_name(f"{path.name}.json").write_text("{")


def sidecar_of_another(path: Path) -> None:
    told = path.with_name(f"{path.name}.json")
    told.write_text(told.read_text().replace("GPU A", "GPU Z"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damaged, "is damaged, so it is built again"),
        (half, "is damaged, so it is built again"),
        (sidecar_gone, "its .json is missing, so it is built again"),
        (sidecar_damaged, "its .json is damaged, so it is built again"),
        (sidecar_of_another, "was built for gpu GPU Z and this is GPU A, so it is built again"),
    ],
    ids=["changed", "half", "no sidecar", "damaged sidecar", "sidecar of another"],
)
def test_a_damaged_engine_is_thrown_away_with_a_message(tmp_path: Path, harm: Any, words: str) -> None:
    make = Builder()
    first = kept_engine(tmp_path, "net", WANTED, make)
    harm(first.path)
    again = kept_engine(tmp_path, "net", WANTED, make)
    assert again.built
    assert again.messages == [f"{first.path.name}: {words}."]
    assert again.path.read_bytes() == b"plan 2"
    assert not kept_engine(tmp_path, "net", WANTED, make).built


def test_timings_go_from_one_model_to_the_next_on_the_same_gpu_only(tmp_path: Path) -> None:
    make = Builder()
    kept_engine(tmp_path, "one", WANTED, make)
    kept_engine(tmp_path, "two", {**WANTED, "onnx_sha256": "cd"}, make)
    kept_engine(tmp_path, "two", {**WANTED, "gpu": "GPU B"}, make)
    assert make.given == [b"", b"t", b""]


def test_damaged_timings_are_thrown_away_with_a_message(tmp_path: Path) -> None:
    make = Builder()
    kept_engine(tmp_path, "one", WANTED, make)
    timing = tmp_path / timing_name(WANTED)
    timing.write_bytes(timing.read_bytes() + b"x")
    second = kept_engine(tmp_path, "two", WANTED, make)
    assert make.given == [b"", b""]
    assert second.messages[-1] == f"{timing.name}: the kernel timings are damaged and were thrown away."


def test_a_build_that_fails_changes_nothing(tmp_path: Path) -> None:
    make = Builder()
    first = kept_engine(tmp_path, "net", WANTED, make)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fails(timings: bytes) -> tuple[bytes, bytes]:
        raise KeyError

    with pytest.raises(KeyError):
        kept_engine(tmp_path, "net", {**WANTED, "gpu": "GPU B"}, fails)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert first.path.read_bytes() == b"plan 1"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(target, b"content")
    assert names(tmp_path) == ["taken"]
    assert list(tmp_path.glob(".*.part")) == []


PROGRAM = """
import sys, time, pathlib
from edgekd.agent.engines import kept_engine
def make(timings):
    with open(sys.argv[1] + "/built", "a") as file:
        file.write("x")
    time.sleep(0.5)
    return b"plan", b"timings"
wanted = {"library": "t", "version": "1", "compute_capability": "8.6"}
print(kept_engine(pathlib.Path(sys.argv[1]) / "e", "net", wanted, make).built)
"""


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in started)
    assert said == ["False", "False", "True"]
    assert (tmp_path / "built").read_text() == "x"


# ---- with the real library, building ahead of time for a GPU that is not here


def facts(**changed: Any) -> dict[str, Any]:
    return {"name": "GPU A", "compute_capability": "8.6", "cuda_driver": "12.4", **changed}


@pytest.mark.tensorrt
def test_ready_engine_is_built_once_and_again_for_another_gpu_file_or_batch(tmp_path: Path) -> None:
    from edgekd.targets import _engine

    try:
        ahead = _engine.compute_capabilities()
    except BackendMissing as missing:
        pytest.skip(str(missing))
    if "8.6" not in ahead:
        pytest.skip("this TensorRT does not build ahead of time for 8.6")
    path = tmp_path / "net.onnx"
    onnx.save(residual_net(), path)
    built, messages = _engine.ready_engine(path, gpu=facts(), batch=(1, 2, 4))
    assert messages == [f"{built.path.name}: built, there was none."]
    assert built.path.parent == tmp_path
    assert built.path.stat().st_size > 10_000
    again, messages = _engine.ready_engine(path, gpu=facts(), batch=(1, 2, 4))
    assert (again, messages) == (built, [])
    _, messages = _engine.ready_engine(path, gpu=facts(name="GPU B"), batch=(1, 2, 4))
    assert "was built for gpu GPU A and this is GPU B" in messages[0]
    _, messages = _engine.ready_engine(path, gpu=facts(), batch=(1, 1, 1))
    assert "batch profile" in messages[0]
    onnx.save(float_net(), path)
    fresh, messages = _engine.ready_engine(path, gpu=facts(), batch=(1, 2, 4))
    assert "was built from another ONNX file" in messages[0]
    sidecar = json.loads(fresh.path.with_name(f"{fresh.path.name}.json").read_text())
    assert [one["name"] for one in sidecar["inputs"]] == ["x"]
    # what a runner reads: it refuses for the missing GPU, not for the file
    if not _has_gpu():
        with pytest.raises(BackendMissing, match=r"needs a GPU of compute capability 8\.6"):
            _engine.TensorRTRunner(fresh.path)


def _has_gpu() -> bool:
    from edgekd.targets._trt_runner import cuda_capability

    return cuda_capability() is not None


@pytest.mark.tensorrt
def test_ready_engine_refuses_what_the_library_cannot_build_for(tmp_path: Path) -> None:
    from edgekd.targets import _engine

    try:
        ahead = _engine.compute_capabilities()
    except BackendMissing as missing:
        pytest.skip(str(missing))
    if not ahead:
        pytest.skip("this TensorRT does not build ahead of time")
    path = tmp_path / "net.onnx"
    onnx.save(float_net(), path)
    with pytest.raises(UsageError, match=r"does not build for compute capability 9\.0"):
        _engine.ready_engine(path, gpu=facts(compute_capability="9.0"), batch=(1, 1, 1))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file.*cannot be written"):
        _engine.ready_engine(path, gpu=facts(), batch=(1, 1, 1), folder=tmp_path / "file")
