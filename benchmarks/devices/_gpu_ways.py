"""The ways to run one network on a GPU: torch, ONNX Runtime's providers, TensorRT engines.

Every way is a query: a batch on the host goes in, its logits on the host come out. What is not here says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from edgekd.agent.cuda import CudaError
from edgekd.agent.engine_session import EngineSession, GpuRefusal
from edgekd.agent.gpu import open_model
from edgekd.devices._place import SessionSettings
from edgekd.errors import EdgeKDError
from edgekd.targets._onnxruntime import OnnxRuntimeRunner

__all__ = ["PRECISIONS", "PROVIDERS", "Missing", "Way", "opened", "versions"]

PRECISIONS = ("float32", "float16", "int8")
PROVIDERS = {
    "onnxruntime_cuda": "CUDAExecutionProvider",
    "onnxruntime_tensorrt": "TensorrtExecutionProvider",
    "onnxruntime_tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
}
_TORCH_TYPES = {"float32": torch.float32, "float16": torch.float16}


class Missing(Exception):
    """A way that cannot be taken here; the text says why."""


@dataclass
class Way:
    """One way, ready to be timed on one batch.

    Args:
        query: runs it once; the logits, (batch, K).
        session: the engine's, where its parts can be timed apart.
        facts: what else is known.
    """

    query: Callable[[], np.ndarray]
    session: EngineSession | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def opened(
    name: str, precision: str, *, module: nn.Module, files: Mapping[str, Path], batch: np.ndarray, device: str
) -> Iterator[Way]:
    """A way to run a network, for the duration.

    Args:
        name: "torch_eager", "torch_compile", one of `PROVIDERS`, "tensorrt_engine", or "onnxruntime_cpu".
        precision: one of `PRECISIONS`.
        module: the network in float32.
        files: its ONNX files by precision.
        batch: the input, (batch, 3, 224, 224) float32.
        device: torch's, "cuda" or "cpu".

    Raises:
        Missing: it cannot be taken here.
    """
    if name.startswith("torch"):
        yield _torch(name, precision, module, batch, device)
    elif name == "tensorrt_engine":
        way = _engine(files[precision], batch)
        try:
            yield way
        finally:
            if way.session is not None:
                way.session.close()
    else:
        try:
            runner = OnnxRuntimeRunner(files[precision], provider=PROVIDERS.get(name, "CPUExecutionProvider"))
        except EdgeKDError as error:
            raise Missing(str(error)) from error
        (spec,) = runner.inputs
        with runner:
            yield Way(lambda: next(iter(runner.run({spec.name: batch}).values())))


def _torch(name: str, precision: str, module: nn.Module, batch: np.ndarray, device: str) -> Way:
    dtype = _TORCH_TYPES.get(precision)
    if dtype is None:
        raise Missing("torch has no int8 convolution on a GPU")
    placed = module.to(device=device, dtype=dtype)
    host = torch.from_numpy(batch)
    if device == "cuda":
        host = host.pin_memory()
    model: Callable[[torch.Tensor], torch.Tensor] = placed
    if name == "torch_compile":
        model = torch.compile(placed, mode="reduce-overhead" if device == "cuda" else None)

    @torch.inference_mode()
    def query() -> np.ndarray:
        # to the CPU waits for the device, so that the logits are there when the clock is read
        answer: np.ndarray = model(host.to(device, non_blocking=True).to(dtype)).float().cpu().numpy()
        return answer

    try:
        query()
    except Exception as error:  # torch.compile raises what its compilers raise
        raise Missing(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    return Way(query)


def _engine(file: Path, batch: np.ndarray) -> Way:
    options = {"batch": ",".join([str(len(batch))] * 3)}
    try:
        session = open_model(file, SessionSettings(provider="tensorrt", provider_options=options).model_dump())
        feeds = {session.input_name(): batch}
        run = session.bound(feeds)
    except (GpuRefusal, CudaError) as error:
        raise Missing(str(error)) from error
    output = session.output_names[0]

    def query() -> np.ndarray:
        run()
        return session.answer(output)

    return Way(query, session, {"messages": session.messages, "note": session.note})


def versions() -> dict[str, str | None]:
    """Of what the ways run on."""
    return {"onnxruntime": onnxruntime.__version__, "cuda_of_torch": torch.version.cuda}
