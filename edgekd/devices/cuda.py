"""This machine's NVIDIA GPU: ONNX Runtime's CUDA and TensorRT providers, or TensorRT engines."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, ClassVar, Literal

from pydantic import Field

from edgekd import spec
from edgekd.agent.cuda import CudaError, Driver
from edgekd.devices._agent_place import AgentPlace
from edgekd.devices._base import Device
from edgekd.devices._gpu_place import GpuPlace
from edgekd.devices._gpu_smi import gpu_state, throttle_words
from edgekd.devices._place import TENSORRT
from edgekd.devices._program import BOOTSTRAP, Start
from edgekd.errors import BackendMissing

__all__ = ["Cuda"]

_CUDNN = ("libcudnn.so.9", "libcudnn.so.8")
_RUNTIME = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")


class Cuda(Device):
    """The GPU of this machine; a process of its own runs the models, as on every other device."""

    class Options(spec.Options):
        """Which GPU, and what runs on it.

        Args:
            provider: execution provider of ONNX Runtime, or "tensorrt" for engines that are built here.
            device: number of the GPU.
            engine_folder: where engines are kept, "tensorrt" only; beside the model unless given, and gone with it.
            folder: to make the process's private folder in; the system's temporary one unless given.
            silence_seconds: it is taken to hang when it says nothing for so long; engines take their time to build.
        """

        provider: Literal[
            "CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "tensorrt"
        ] = "CUDAExecutionProvider"
        device: int = Field(0, ge=0)
        engine_folder: str | None = None
        folder: str | None = None
        silence_seconds: float = Field(900.0, gt=0.0)

    here: ClassVar[bool] = False

    @classmethod
    def found(cls) -> list[str]:
        """Itself: whether there is a GPU is seen by opening it."""
        return ["cuda"]

    def open(self) -> GpuPlace:
        """A process of this interpreter whose sessions run on the GPU.

        Raises:
            BackendMissing: no GPU, or ONNX Runtime has no such provider.
        """
        options = self._mine()
        facts = self._facts()
        extra = {"device": str(options.device)} if options.provider == TENSORRT else {"device_id": str(options.device)}
        if options.engine_folder and options.provider == TENSORRT:
            extra["engine_folder"] = options.engine_folder
        inner = AgentPlace(
            Start(
                name="cuda",
                command=[sys.executable, "-c", BOOTSTRAP],
                silence_seconds=options.silence_seconds,
                hello={"folder": options.folder},
            )
        )
        return GpuPlace(inner, provider=options.provider, provider_options=extra, device=options.device, facts=facts)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the GPU and its state now; a value that it does not tell is None.

        Clocks in MHz, temperature in degrees Celsius, power in watts. They are read and never set.

        Raises:
            BackendMissing: no GPU.
        """
        facts = self._facts()
        state = gpu_state(self._mine().device) or {}
        return {
            **facts,
            **state,
            "model": facts["name"],
            "throttled": throttle_words(state),
            "cudnn": _version(_CUDNN, "cudnnGetVersion"),
            "cuda_runtime": _runtime_version(),
        }

    def _facts(self) -> dict[str, Any]:
        try:
            return Driver(self._mine().device).facts()
        except CudaError as error:
            raise BackendMissing(
                f"cuda: {error}. It needs an NVIDIA GPU with its driver; without one use the device cpu."
            ) from error

    def _mine(self) -> Cuda.Options:
        return self.options if isinstance(self.options, Cuda.Options) else Cuda.Options()


def _version(libraries: tuple[str, ...], function: str) -> str | None:
    """Of cuDNN, whose number 91002 is 9.10.2 and 8907 is 8.9.7; None where it is not found."""
    for name in libraries:
        try:
            call = getattr(ctypes.CDLL(name), function)
        except (OSError, AttributeError):
            continue
        call.restype = ctypes.c_size_t
        number = int(call())
        major = 10_000 if number >= 90_000 else 1000
        return f"{number // major}.{number % major // 100}.{number % 100}"
    return None


def _runtime_version() -> str | None:
    """Of the CUDA runtime library, "12.6"; None where it is not found."""
    for name in _RUNTIME:
        value = ctypes.c_int()
        try:
            code = ctypes.CDLL(name).cudaRuntimeGetVersion(ctypes.byref(value))
        except (OSError, AttributeError):
            continue
        return f"{value.value // 1000}.{value.value % 1000 // 10}" if code == 0 else None
    return None
