"""Backends tried on a model of a few bytes: that one is listed does not mean that it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgekd.errors import EdgeKDError
from edgekd.spec import Frozen

__all__ = ["Engine", "Provider", "TorchDevice", "cpu", "int8_sums", "providers", "tensorrt", "torch_devices"]

# what a broken or missing installation of a compiled package raises on import
_BROKEN = (ImportError, OSError)
_REMOTE = ("AzureExecutionProvider",)
_TERMS = 64


class Provider(Frozen):
    """An execution provider of ONNX Runtime.

    Args:
        works: a session was opened on it, without falling back to another, and gave the right numbers.
        problem: why not.
    """

    name: str
    works: bool
    problem: str = ""


class TorchDevice(Frozen):
    """A device of torch.

    Args:
        name: cpu, cuda:0.
        description: its product name, "" if it has none.
        works: a sum was computed on it.
        problem: why not.
    """

    name: str
    description: str = ""
    works: bool
    problem: str = ""


class Engine(Frozen):
    """The TensorRT library.

    Args:
        parses: it read a small ONNX model.
        problem: why not.
    """

    library: str
    version: str
    parses: bool
    problem: str = ""


def providers() -> list[Provider]:
    """Every provider that ONNX Runtime lists, after a session on it; those that only call a service are left out."""
    try:
        import onnxruntime
    except _BROKEN as error:
        return [Provider(name="CPUExecutionProvider", works=False, problem=f"onnxruntime does not load: {error}")]
    return [_provider(str(name)) for name in onnxruntime.get_available_providers() if name not in _REMOTE]


def int8_sums() -> str:
    """Whether ONNX Runtime's u8 x s8 products are summed exactly on this processor: "exact" or "saturating".

    All factors are at their largest, so that a pair of products exceeds 16 bits.
    """
    import numpy as np

    from edgekd.targets._onnxruntime import OnnxRuntimeRunner

    with OnnxRuntimeRunner(_integer_model()) as runner:
        found = runner.run({"x": np.full((1, _TERMS), 255, np.uint8)})["y"]
    return "exact" if int(found[0, 0]) == 255 * 127 * _TERMS else "saturating"


def torch_devices() -> list[TorchDevice]:
    """The processor and every GPU that torch sees, after a sum on it."""
    try:
        import torch
    except _BROKEN as error:
        return [TorchDevice(name="cpu", works=False, problem=f"torch does not load: {error}")]
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return [_torch_device(name) for name in names]


def tensorrt() -> Engine | None:
    """The TensorRT library after it parsed a small model; None if there is none."""
    from edgekd.errors import BackendMissing
    from edgekd.targets._trt_library import trt_library
    from edgekd.targets._trt_network import parse

    try:
        _, library, version = trt_library()
    except BackendMissing:
        return None
    try:
        with _no_native_messages():
            parse(_float_model())
    except EdgeKDError as error:
        return Engine(library=library, version=version, parses=False, problem=str(error))
    return Engine(library=library, version=version, parses=True)


def cpu() -> dict[str, Any]:
    """The processor's fingerprint."""
    from edgekd.catalog import CATALOGS

    member = CATALOGS["devices"].load("cpu").member
    values: dict[str, Any] = member(member.Options()).fingerprint()
    return values


def _provider(name: str) -> Provider:
    import numpy as np

    from edgekd.targets._onnxruntime import OnnxRuntimeRunner

    try:
        with _no_native_messages(), OnnxRuntimeRunner(_float_model(), provider=name) as runner:
            found = runner.run({"x": np.full((1, 4), -1.0, np.float32)})["y"]
    except EdgeKDError as error:
        return Provider(name=name, works=False, problem=str(error))
    right = bool((found == 0.0).all())
    return Provider(name=name, works=right, problem="" if right else f"the ReLU of -1 is {found.tolist()} there")


def _torch_device(name: str) -> TorchDevice:
    import torch

    description = torch.cuda.get_device_name(name) if name.startswith("cuda") else ""
    try:
        total = float(torch.ones(8, device=name).sum())
    except RuntimeError as error:  # a driver too old, or a GPU this build has no kernels for
        return TorchDevice(name=name, description=description, works=False, problem=str(error).split("\n")[0])
    return TorchDevice(name=name, description=description, works=total == 8.0)


@contextmanager
def _no_native_messages() -> Iterator[None]:
    """Drop what a runtime's own code writes to the process's stderr: the exception says the same, once."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _float_model() -> bytes:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    return _serialized(graph)


def _integer_model() -> bytes:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.full((_TERMS, 8), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, _TERMS])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 8])],
        [weights],
    )
    return _serialized(graph)


def _serialized(graph: Any) -> bytes:
    from onnx import helper

    # the oldest versions that hold these operators, so that every runtime takes the file
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())
