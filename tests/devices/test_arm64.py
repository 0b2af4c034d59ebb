"""64-bit Arm under emulation, as a device of its own and behind ssh: its answers, and an older runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loopback_ssh import SshServer, arm64_python

from edgekd.devices._arm64_userland import USERLAND
from edgekd.devices._base import open_place
from edgekd.devices._place import Place, SessionSettings, Timing
from edgekd.errors import BackendMissing, ModelFileError

from .conftest import dense

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "arm64_userland.sh"
SESSION = SessionSettings(cores=None)
SHORT = Timing(queries=5, warmup_min=2, window=1, warmup_max_seconds=0.5)


@pytest.fixture(scope="module")
def userland(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the environment names, else one made of Debian's and PyPI's packages."""
    if given := os.environ.get(USERLAND):
        return Path(given)
    if shutil.which("apt-get") is None:
        pytest.skip(f"{USERLAND} is not set, and there is no apt-get to make one with")
    folder = tmp_path_factory.mktemp("arm64") / "userland"
    done = subprocess.run(["sh", str(SCRIPT), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{SCRIPT.name} could not make one: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(params=["emulated_arm64", "ssh"])
def arm(request: pytest.FixtureRequest, there: Path, tmp_path: Path, userland: Path) -> Place:
    if request.param == "emulated_arm64":
        return open_place("emulated_arm64", {"folder": str(there), "userland": str(userland)})
    server: SshServer = request.getfixturevalue("server")
    python = arm64_python(tmp_path / "arm64-python", userland)
    return open_place(server.name, server.options(python, folder=str(there), silence_seconds=300.0))


def test_arm_gives_the_answers_of_x86_and_marks_its_times(
    arm: Place, there: Path, model: Path, gone: Callable[[Path], None]
) -> None:
    feeds = [{"x": np.random.default_rng(seed).standard_normal((1, 16)).astype(np.float32)} for seed in range(5)]
    with arm, open_place("cpu") as near:
        for place in (arm, near):
            place.put({"m.onnx": model})
        about = arm.about()
        answers, expected = arm.run("m.onnx", feeds, SESSION), near.run("m.onnx", feeds, SESSION)
        timed = arm.measure({"m": "m.onnx"}, feeds[0], session=SESSION, timing=SHORT)
        cold = arm.cold("m.onnx", feeds[0], session=SESSION, repeats=1)
        nodes = arm.placement("m.onnx", feeds[0], session=SESSION, runs=2)
    assert (about.machine, about.emulated, about.details["features"]) == ("aarch64", True, None)
    for one, other in zip(answers, expected, strict=True):
        assert np.allclose(one["y"], other["y"], rtol=1e-5, atol=1e-6)
    assert len(timed.models["m"].samples_ms) == 5
    assert cold[0].process_ms > 0
    assert [node.op for node in nodes] == ["MatMul"]
    gone(there)


def test_older_runtime_there_says_what_it_reads(arm: Place, tmp_path: Path) -> None:
    newer = dense(tmp_path / "newer.onnx", opset=26, ir_version=13)
    feeds = [{"x": np.zeros((1, 16), np.float32)}]
    with arm, open_place("cpu") as near:
        for place in (arm, near):
            place.put({"newer.onnx": newer})
        near.run("newer.onnx", feeds, SESSION)  # the runtime here takes it
        with pytest.raises(ModelFileError, match=r"Runtime 1\.23\.2 there refuses .* IR version 13, .* up to 11\."):
            arm.run("newer.onnx", feeds, SESSION)


def test_python_for_another_processor_is_named(server: SshServer, userland: Path) -> None:
    # started without its emulator, as when a device has another architecture than was thought
    bare = userland / "root/usr/bin/python3.11"
    with pytest.raises(BackendMissing, match=r"its Python cannot be run|it has no Python"):
        open_place(server.name, server.options(bare))
