"""The CUDA driver by its own C interface: memory, copies, streams, events and graphs, without another package.

The driver's library is there wherever a GPU works, and its functions never change under the same name; the suffixes
`_v2` are part of the names. TensorRT and torch work in the same context, the device's primary one.

Reference: NVIDIA, "CUDA Driver API".
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any, Dict, List, Optional, Sequence

__all__ = ["CudaError", "Driver", "Event", "Graph", "Stream"]

_LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
_NOT_READY = 600
_BLOCKING_EVENT = 1
_NON_BLOCKING_STREAM = 1
_RELAXED_CAPTURE = 2
# CUdevice_attribute
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _CLOCK_KHZ, _MEMORY_CLOCK_KHZ, _INTEGRATED = 75, 76, 13, 36, 18


class CudaError(Exception):
    """The driver is missing, or refused a call."""


class Driver:
    """The CUDA driver and one device's primary context, made current for this thread.

    Args:
        device: number of the GPU.
        library: path of the driver's library; where the system has it unless given.

    Raises:
        CudaError: no driver, or no such GPU.
    """

    def __init__(self, device: int = 0, library: Optional[str] = None) -> None:
        self._library = _loaded([library] if library else _LIBRARIES)
        self._call("cuInit", 0)
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if device >= count.value:
            raise CudaError(f"GPU {device} was asked for and the driver has {count.value}")
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), device)
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    def facts(self) -> Dict[str, Any]:
        """Name, compute capability, driver's CUDA version, highest clocks in MHz, memory in bytes."""
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, 256, self._device)
        memory, version = ctypes.c_size_t(), ctypes.c_int()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(memory), self._device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        return {
            "name": name.value.decode(errors="replace"),
            "compute_capability": f"{self._attribute(_CAPABILITY_MAJOR)}.{self._attribute(_CAPABILITY_MINOR)}",
            "cuda_driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
            "max_clock_mhz": self._attribute(_CLOCK_KHZ) / 1000,
            "max_memory_clock_mhz": self._attribute(_MEMORY_CLOCK_KHZ) / 1000,
            "memory_bytes": memory.value,
            "integrated": bool(self._attribute(_INTEGRATED)),
        }

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes; its address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return int(address.value)

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def allocate_host(self, size: int) -> int:
        """Host memory of `size` bytes that stays where it is, so that copies run on their own; its address."""
        address = ctypes.c_void_p()
        self._call("cuMemAllocHost_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return int(address.value or 0)

    def free_host(self, address: int) -> None:
        """Give such host memory back."""
        self._call("cuMemFreeHost", ctypes.c_void_p(address))

    def copy_in(self, device: int, host: int, size: int, stream: Stream) -> None:
        """Host to device, in the order of the stream."""
        self._call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(device), ctypes.c_void_p(host), ctypes.c_size_t(size), stream.handle
        )

    def copy_out(self, host: int, device: int, size: int, stream: Stream) -> None:
        """Device to host, in the order of the stream."""
        self._call(
            "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(host), ctypes.c_uint64(device), ctypes.c_size_t(size), stream.handle
        )

    def stream(self) -> Stream:
        """A new stream, which does not wait for the default one."""
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING_STREAM)
        return Stream(self, handle)

    def event(self, *, blocking: bool = False) -> Event:
        """A new event; waiting for a blocking one lets the processor sleep."""
        handle = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(handle), _BLOCKING_EVENT if blocking else 0)
        return Event(self, handle, blocking)

    def call(self, name: str, *arguments: Any) -> None:
        """Call one of the driver's functions.

        Raises:
            CudaError: it returned an error.
        """
        self._call(name, *arguments)

    def code(self, name: str, *arguments: Any) -> int:
        """Call one of the driver's functions; what it returned."""
        function: Any = getattr(self._library, name, None)
        if function is None:
            raise CudaError(f"the CUDA driver has no {name}; it is too old")
        return int(function(*arguments))

    def _call(self, name: str, *arguments: Any) -> None:
        code = self.code(name, *arguments)
        if code != 0:
            raise CudaError(f"{name}: {self._words(code)}")

    def _words(self, code: int) -> str:
        text = ctypes.c_char_p()
        known: Any = getattr(self._library, "cuGetErrorString", None)
        if known is None or known(code, ctypes.byref(text)) != 0 or not text.value:
            return f"error {code}"
        return f"{text.value.decode(errors='replace')} (error {code})"

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value


class Stream:
    """What runs on the GPU one after another."""

    def __init__(self, driver: Driver, handle: ctypes.c_void_p) -> None:
        self._driver = driver
        self.handle = handle

    @property
    def number(self) -> int:
        """As other libraries take it."""
        return int(self.handle.value or 0)

    def wait(self) -> None:
        """Until all of it is done."""
        self._driver.call("cuStreamSynchronize", self.handle)

    def begin_capture(self) -> None:
        """From here on what is enqueued is recorded and not run."""
        self._driver.call("cuStreamBeginCapture_v2", self.handle, _RELAXED_CAPTURE)

    def end_capture(self) -> Graph:
        """What was recorded.

        Raises:
            CudaError: something in it cannot be recorded.
        """
        graph = ctypes.c_void_p()
        self._driver.call("cuStreamEndCapture", self.handle, ctypes.byref(graph))
        ready = ctypes.c_void_p()
        try:
            # an older driver has it under this name, too: since CUDA 11.4
            self._driver.call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_uint64(0))
        finally:
            self._driver.code("cuGraphDestroy", graph)
        return Graph(self._driver, ready)

    def abandon_capture(self) -> None:
        """End a recording that went wrong, so that the stream runs again."""
        graph = ctypes.c_void_p()
        self._driver.code("cuStreamEndCapture", self.handle, ctypes.byref(graph))
        if graph.value:
            self._driver.code("cuGraphDestroy", graph)

    def close(self) -> None:
        """Give it back."""
        self._driver.code("cuStreamDestroy_v2", self.handle)


class Event:
    """A mark in a stream whose time is known afterwards."""

    def __init__(self, driver: Driver, handle: ctypes.c_void_p, blocking: bool) -> None:
        self._driver = driver
        self.handle = handle
        self._blocking = blocking

    def record(self, stream: Stream) -> None:
        """Put the mark behind what is in the stream."""
        self._driver.call("cuEventRecord", self.handle, stream.handle)

    def wait(self) -> None:
        """Until the mark was reached: asleep for a blocking event, else asking again and again."""
        if self._blocking:
            self._driver.call("cuEventSynchronize", self.handle)
            return
        while True:
            code = self._driver.code("cuEventQuery", self.handle)
            if code == 0:
                return
            if code != _NOT_READY:
                self._driver.call("cuEventQuery", self.handle)

    def since_ms(self, earlier: Event) -> float:
        """Milliseconds on the GPU's clock; both marks were reached."""
        value = ctypes.c_float()
        self._driver.call("cuEventElapsedTime", ctypes.byref(value), earlier.handle, self.handle)
        return value.value

    def close(self) -> None:
        """Give it back."""
        self._driver.code("cuEventDestroy_v2", self.handle)


class Graph:
    """Recorded work that is started by one call."""

    def __init__(self, driver: Driver, handle: ctypes.c_void_p) -> None:
        self._driver = driver
        self._handle = handle

    def launch(self, stream: Stream) -> None:
        """Enqueue all of it."""
        self._driver.call("cuGraphLaunch", self._handle, stream.handle)

    def close(self) -> None:
        """Give it back."""
        self._driver.code("cuGraphExecDestroy", self._handle)


def _loaded(names: Sequence[str]) -> Any:
    reasons: List[str] = []
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reasons.append(" ".join(str(error).split()))
    raise CudaError(f"there is no CUDA driver here ({reasons[0] if reasons else 'no library'})")
