"""Run a TensorRT engine on the GPU it was built for, and time it there.

Answers come through torch's CUDA tensors, one set a call. Times come from a session of `edgekd.agent` on the same
engine: buffers that stay, pinned host memory, a CUDA graph, and the GPU's own clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np

from edgekd.agent.cuda import CudaError, Driver
from edgekd.agent.engine_session import EngineSession, GpuRefusal, GpuTimes
from edgekd.errors import BackendMissing, MismatchError, ModelFileError
from edgekd.spec import TensorSpec
from edgekd.targets._trt_library import messages, trt_library, trt_logger

__all__ = ["TensorRTRunner", "cuda_capability"]

Answer = TypeVar("Answer")


def cuda_capability() -> str | None:
    """Compute capability of the current GPU, "8.6"; None when torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


class TensorRTRunner:
    """Run an engine made by `build_engine`.

    Args:
        engine_path: the `.engine` file; its `.json` stands beside it.

    Raises:
        ModelFileError: the engine or its sidecar is missing, damaged, or does not deserialize.
        BackendMissing: no TensorRT, another version of it, no GPU, or one of another compute capability.
    """

    def __init__(self, engine_path: Path) -> None:
        sidecar, plan = _read(engine_path)
        self._where = str(engine_path)
        self.fingerprint: dict[str, Any] = sidecar["fingerprint"]
        self.inputs = [TensorSpec.model_validate(spec) for spec in sidecar["inputs"]]
        self.outputs = [TensorSpec.model_validate(spec) for spec in sidecar["outputs"]]
        _check_machine(engine_path, self.fingerprint)
        trt, library, version = trt_library()
        self.provider_requested = self.provider_used = f"{library} {version}"
        with messages() as said:
            self._runtime: Any = trt.Runtime(trt_logger())
            self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
            self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise ModelFileError(f"{engine_path}: {library} cannot load the engine: {said.text()}. Build it again.")
        import torch

        self._session: EngineSession | None = None
        self._session_kind = (True, "spin")
        self._torch: Any = torch
        self._stream: Any = self._torch.cuda.Stream()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; keys are input names, the result's keys are output names.

        Raises:
            MismatchError: the feeds do not fit the engine's inputs or its batch profile.
        """
        if self._context is None:
            raise RuntimeError(f"runner of {self._where} is closed")
        self._check(feeds)
        torch = self._torch
        with messages() as said, torch.cuda.stream(self._stream):
            # the buffers live in this frame until the stream is done with them
            buffers = {spec.name: self._input(spec, feeds[spec.name]) for spec in self.inputs}
            buffers |= {spec.name: self._output(spec) for spec in self.outputs}
            done = self._context.execute_async_v3(self._stream.cuda_stream)
            self._stream.synchronize()
        if not done:
            raise MismatchError(f"{self._where}: TensorRT did not run: {said.text()}. {self._wanted(feeds)}")
        return {spec.name: buffers[spec.name].cpu().numpy() for spec in self.outputs}

    def timed(
        self,
        feeds: Mapping[str, np.ndarray],
        *,
        queries: int,
        warmup: int = 20,
        use_graph: bool = True,
        sync: Literal["spin", "blocking"] = "spin",
    ) -> GpuTimes:
        """Time copies and inference apart, by the GPU's clock, and all of it by the host's.

        Args:
            feeds: by input name.
            queries: timed runs.
            warmup: runs before them.
            use_graph: replay the inference as a CUDA graph; where it cannot be recorded the result's note says why.
            sync: how the host waits: asking again and again, or asleep.

        Raises:
            MismatchError: the feeds do not fit the engine's inputs or its batch profile.
            BackendMissing: the CUDA driver refused.
        """
        return self._asked(lambda session: session.timed(feeds, queries=queries, warmup=warmup), use_graph, sync)

    def throughput(self, feeds: Mapping[str, np.ndarray], *, seconds: float = 1.0) -> float:
        """Samples per second, batches enqueued one behind the other and without copies, by the GPU's clock.

        Raises:
            MismatchError, BackendMissing: as `timed`.
        """
        batch = next(iter(feeds.values())).shape[0]
        per_second = self._asked(lambda session: session.throughput(feeds, seconds=seconds), True, "spin")
        return float(batch * per_second)

    def _asked(self, do: Callable[[EngineSession], Answer], use_graph: bool, sync: str) -> Answer:
        if self._context is None:
            raise RuntimeError(f"runner of {self._where} is closed")
        try:
            if self._session is None or self._session_kind != (use_graph, sync):
                self._end_session()
                self._session = EngineSession(
                    trt_library()[0],
                    self._engine,
                    Driver(),
                    provider=self.provider_used,
                    use_graph=use_graph,
                    sync=sync,
                )
                self._session_kind = (use_graph, sync)
            return do(self._session)
        except GpuRefusal as error:
            raise MismatchError(f"{self._where}: {error}.") from error
        except CudaError as error:
            raise BackendMissing(f"{self._where}: {error}.") from error

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def close(self) -> None:
        """Free the engine; a second call does nothing."""
        self._end_session()
        # in this order: a context must not outlive its engine, nor an engine its runtime
        self._context = None
        self._engine = None
        self._runtime = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _input(self, spec: TensorSpec, array: np.ndarray) -> Any:
        tensor = self._torch.from_numpy(np.ascontiguousarray(array)).to("cuda")
        self._context.set_input_shape(spec.name, tuple(tensor.shape))
        self._context.set_tensor_address(spec.name, tensor.data_ptr())
        return tensor

    def _output(self, spec: TensorSpec) -> Any:
        # known once every input has its shape
        shape = tuple(self._context.get_tensor_shape(spec.name))
        tensor = self._torch.empty(shape, dtype=getattr(self._torch, spec.dtype), device="cuda")
        self._context.set_tensor_address(spec.name, tensor.data_ptr())
        return tensor

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        low, _, high = self.fingerprint["batch_profile"]
        names = {spec.name for spec in self.inputs}
        fits = set(feeds) == names and all(
            feeds[spec.name].dtype.name == spec.dtype and _fits(feeds[spec.name].shape, spec.shape, low, high)
            for spec in self.inputs
        )
        if not fits:
            raise MismatchError(f"{self._where}: {self._wanted(feeds)}")

    def _wanted(self, feeds: Mapping[str, np.ndarray]) -> str:
        low, _, high = self.fingerprint["batch_profile"]
        wanted = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in self.inputs)
        got = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in feeds.items())
        return f"The engine takes {wanted} with B from {low} to {high}; got {got or 'nothing'}."


def _fits(shape: tuple[int, ...], wanted: list[int | str], low: int, high: int) -> bool:
    return len(shape) == len(wanted) and all(
        low <= size <= high if isinstance(want, str) else size == want for size, want in zip(shape, wanted, strict=True)
    )


def _read(engine_path: Path) -> tuple[dict[str, Any], bytes]:
    """The sidecar and the engine, checked against each other."""
    try:
        plan = engine_path.read_bytes()
        sidecar: dict[str, Any] = json.loads(engine_path.with_name(f"{engine_path.name}.json").read_text("utf-8"))
        digest = sidecar["engine_sha256"]
    except OSError as error:
        raise ModelFileError(
            f"{error.filename}: cannot be read: {error.strerror}. An engine and its .json travel"
            " together; build it again."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{engine_path}.json: does not describe an engine ({error}). Build it again.") from error
    if hashlib.sha256(plan).hexdigest() != digest:
        raise ModelFileError(f"{engine_path}: is not the engine its .json describes, or is damaged. Build it again.")
    return sidecar, plan


def _check_machine(engine_path: Path, fingerprint: Mapping[str, Any]) -> None:
    wanted = fingerprint["compute_capability"]
    found = cuda_capability()
    if found != wanted:
        here = f"this machine has one of {found}" if found else "torch sees none here"
        raise BackendMissing(
            f"Running {engine_path.name} needs a GPU of compute capability {wanted}; {here}."
            " Run it there, or build an engine for this GPU."
        )
    _, library, version = trt_library()
    if (library, version) != (fingerprint["library"], fingerprint["version"]):
        raise BackendMissing(
            f"{engine_path.name} was built by {fingerprint['library']} {fingerprint['version']} and this machine has"
            f" {library} {version}. Build the engine again with the version it will run on."
        )
