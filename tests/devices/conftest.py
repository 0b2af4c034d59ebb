"""What the tests of devices share: a model, what it takes, and a server to log in to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import loopback_ssh
import numpy as np
import onnx
import pytest
from loopback_ssh import SshServer, ssh_server
from onnx import TensorProto, helper, numpy_helper


def dense(path: Path, *, size: int = 16, classes: int = 4, opset: int = 17, ir_version: int = 8) -> Path:
    """A model: y = x W, with W a fixed (size, classes) matrix."""
    weight = np.random.default_rng(0).standard_normal((size, classes)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", classes])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir_version
    onnx.save(model, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return dense(tmp_path / "dense.onnx")


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((1, 16)).astype(np.float32)}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    if not loopback_ssh.READY:
        pytest.skip(loopback_ssh.MISSING)
    with ssh_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder for what the program keeps, so that a test sees what is left of it."""
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


Gone = Callable[[Path], None]


@pytest.fixture
def gone() -> Gone:
    """Wait a little until a folder is empty, and fail if it is not."""
    import time

    def wait(folder: Path) -> None:
        end = time.monotonic() + 10.0
        while any(folder.iterdir()) and time.monotonic() < end:
            time.sleep(0.02)
        assert list(folder.iterdir()) == []

    return wait
