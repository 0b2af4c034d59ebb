"""One engine with its buffers: device memory and pinned host memory for one set of shapes, and a CUDA graph."""

from __future__ import annotations

import ctypes
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .cuda import CudaError, Driver, Graph

__all__ = ["EngineSession", "GpuRefusal", "GpuTimes"]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_ENQUEUED = 16
"""Inferences between two looks at the clock when the throughput is measured."""


class GpuRefusal(Exception):
    """What was asked for cannot be done here.

    Args:
        kind: "missing" no GPU, driver or library, "model" it is refused, "mismatch" the feeds do not fit, "usage".
        text: why.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class GpuTimes(NamedTuple):
    """The queries of one timing, one value each, in milliseconds.

    Args:
        copy_in_ms: host to device, by the GPU's clock.
        gpu_ms: the inference alone, by the GPU's clock.
        copy_out_ms: device to host, by the GPU's clock.
        host_ms: from handing the copies over to having the answers, by the host's clock.
        cuda_graph: whether the inference was one recorded graph.
        note: why not, or "".
        sync: how the host waited: "spin" asks again and again, "blocking" sleeps.
    """

    copy_in_ms: List[float]
    gpu_ms: List[float]
    copy_out_ms: List[float]
    host_ms: List[float]
    cuda_graph: bool
    note: str
    sync: str


class _Tensor(NamedTuple):
    """One input or output: its place on both sides."""

    device: int
    host: int
    size: int
    array: np.ndarray


class EngineSession:
    """An engine that is loaded; the same interface as `sessions.Session`.

    Args:
        trt: the library's module.
        engine: deserialized.
        driver: of the GPU that it was built for.
        provider: what it is called in results.
        use_graph: record the inference as a CUDA graph and replay it.
        sync: "spin" or "blocking".
        messages: what happened while it was opened.
        owner: what must live as long as the engine.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        driver: Driver,
        *,
        provider: str,
        use_graph: bool = True,
        sync: str = "spin",
        messages: Sequence[str] = (),
        owner: Any = None,
    ) -> None:
        self.provider_requested = self.provider_used = provider
        self.messages = list(messages)
        self.note = "" if use_graph else "CUDA graph switched off"
        self._trt, self._engine, self._driver, self._owner = trt, engine, driver, owner
        self._use_graph = use_graph
        self._sync = sync
        self._context: Any = engine.create_execution_context()
        if self._context is None:
            raise GpuRefusal("model", "TensorRT has no room for the engine on this GPU")
        self._stream = driver.stream()
        self._marks = [driver.event(blocking=sync == "blocking") for _ in range(4)]
        self._tensors: Dict[str, _Tensor] = {}
        self._shapes: Optional[Dict[str, Tuple[int, ...]]] = None
        self._graph: Optional[Graph] = None
        self.inputs, self.outputs = self._interface()
        self.output_names = [name for name, _, _ in self.outputs]

    def run(self, feeds: Mapping[str, np.ndarray]) -> List[np.ndarray]:
        """Run once; values in the order of `output_names`.

        Raises:
            GpuRefusal: the feeds do not fit.
        """
        self._prepare(feeds)
        self._fill(feeds)
        self._query()
        return [self._tensors[name].array.copy() for name in self.output_names]

    def bound(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        """The inference with its copies, as a callable without arguments; the feeds lie in pinned memory already."""
        taken = dict(feeds)
        self._prepare(taken)
        self._fill(taken)
        return self._query

    def answer(self, name: str) -> np.ndarray:
        """An output of the last query, in the pinned memory that the next one writes over."""
        return self._tensors[name].array

    def input_name(self) -> str:
        """The name of the first input."""
        return str(self.inputs[0][0])

    def run_named(self, name: str, value: np.ndarray) -> List[np.ndarray]:
        """Run once on one input."""
        return self.run({name: value})

    def timed(self, feeds: Mapping[str, np.ndarray], *, queries: int, warmup: int = 20) -> GpuTimes:
        """Time each part of `queries` runs, after `warmup` that are not counted.

        Raises:
            GpuRefusal: the feeds do not fit.
        """
        self._prepare(feeds)
        self._fill(feeds)
        for _ in range(warmup):
            self._query()
        rows = []
        for _ in range(queries):
            begun = time.perf_counter_ns()
            self._query()
            host_ms = (time.perf_counter_ns() - begun) / 1e6
            marks = self._marks
            rows.append((*(marks[at + 1].since_ms(marks[at]) for at in range(3)), host_ms))
        parts = [[row[at] for row in rows] for at in range(4)]
        return GpuTimes(parts[0], parts[1], parts[2], parts[3], self._graph is not None, self.note, self._sync)

    def throughput(self, feeds: Mapping[str, np.ndarray], *, seconds: float) -> float:
        """Inferences per second, one enqueued behind the other without copies, by the GPU's clock.

        Raises:
            GpuRefusal: the feeds do not fit.
        """
        self._prepare(feeds)
        self._fill(feeds)
        self._query()
        done, spent_ms = 0, 0.0
        first, last = self._marks[0], self._marks[3]
        while spent_ms < 1000.0 * seconds or done == 0:
            first.record(self._stream)
            for _ in range(_ENQUEUED):
                self._infer()
            last.record(self._stream)
            last.wait()
            done += _ENQUEUED
            spent_ms += last.since_ms(first)
        return 1000.0 * done / max(spent_ms, 1e-9)

    def layer_times(self, feeds: Mapping[str, np.ndarray], *, runs: int) -> List[Tuple[str, float]]:
        """Name and mean milliseconds of each layer, as TensorRT's profiler has them; without a CUDA graph."""
        self._prepare(feeds)
        self._fill(feeds)
        totals: Dict[str, float] = {}

        def report(self: Any, name: str, ms: float) -> None:
            totals[name] = totals.get(name, 0.0) + ms

        base = self._trt.IProfiler
        profiler = type("Profiler", (base,), {"report_layer_time": report, "__init__": base.__init__})()
        self._context.profiler = profiler
        for _ in range(runs):
            self._enqueue()
            self._stream.wait()
        return [(name, total / runs) for name, total in totals.items()]

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        if self._context is None:
            return
        self._release()
        for mark in self._marks:
            mark.close()
        self._stream.close()
        # in this order: a context must not outlive its engine, nor an engine its runtime
        self._context = None
        self._engine = None
        self._owner = None

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None and hasattr(self, "_marks"):
            self.close()

    def _interface(self) -> Tuple[List[Tuple[str, str, List[int]]], List[Tuple[str, str, List[int]]]]:
        """Name, element type and shape of each input and output; -1 is a dynamic size."""
        inputs: List[Tuple[str, str, List[int]]] = []
        outputs: List[Tuple[str, str, List[int]]] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in _DTYPES:
                raise GpuRefusal("model", f"'{name}' is {kind}, which numpy has not; export it in float32")
            entry = (str(name), _DTYPES[kind], [int(size) for size in self._engine.get_tensor_shape(name)])
            (inputs if self._engine.get_tensor_mode(name).name == "INPUT" else outputs).append(entry)
        return inputs, outputs

    def _prepare(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Buffers and graph for these shapes; nothing to do where they are the same as before."""
        if self._context is None:
            raise RuntimeError("the session is closed")
        shapes = {name: tuple(np.asarray(array).shape) for name, array in feeds.items()}
        self._check(feeds, shapes)
        if shapes == self._shapes:
            return
        self._release()
        for name, dtype, _ in self.inputs:
            if not self._context.set_input_shape(name, shapes[name]):
                raise GpuRefusal("mismatch", self._wanted(feeds))
            self._tensors[name] = self._allocated(dtype, shapes[name])
        for name, dtype, _ in self.outputs:
            # known once every input has its shape
            self._tensors[name] = self._allocated(dtype, tuple(self._context.get_tensor_shape(name)))
        for name, tensor in self._tensors.items():
            self._context.set_tensor_address(name, tensor.device)
        self._shapes = shapes
        # once without a graph: TensorRT prepares itself for the shapes then, which cannot be recorded
        self._enqueue()
        self._stream.wait()
        if self._use_graph:
            self._graph = self._captured()

    def _captured(self) -> Optional[Graph]:
        try:
            self._stream.begin_capture()
        except CudaError as error:
            self.note = f"no CUDA graph: {error}"
            return None
        try:
            self._enqueue()
            graph = self._stream.end_capture()
        except (CudaError, GpuRefusal) as error:
            self._stream.abandon_capture()
            self.note = f"no CUDA graph: {error}"
            return None
        self.note = ""
        return graph

    def _query(self) -> None:
        """Copies in, inference, copies out, with a mark between them; waits for the end."""
        first, copied, inferred, last = self._marks
        first.record(self._stream)
        for name, _, _ in self.inputs:
            tensor = self._tensors[name]
            self._driver.copy_in(tensor.device, tensor.host, tensor.size, self._stream)
        copied.record(self._stream)
        self._infer()
        inferred.record(self._stream)
        for name in self.output_names:
            tensor = self._tensors[name]
            self._driver.copy_out(tensor.host, tensor.device, tensor.size, self._stream)
        last.record(self._stream)
        last.wait()

    def _infer(self) -> None:
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.number):
            raise GpuRefusal("mismatch", "TensorRT did not run")

    def _fill(self, feeds: Mapping[str, np.ndarray]) -> None:
        for name, _, _ in self.inputs:
            np.copyto(self._tensors[name].array, feeds[name])

    def _allocated(self, dtype: str, shape: Tuple[int, ...]) -> _Tensor:
        size = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
        device = self._driver.allocate(size)
        host = self._driver.allocate_host(size)
        memory: Any = (ctypes.c_char * max(size, 1)).from_address(host)
        array: np.ndarray = np.ndarray(shape, dtype=np.dtype(dtype), buffer=memory)
        return _Tensor(device, host, size, array)

    def _release(self) -> None:
        """Give graph and buffers back."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._shapes = None
        for tensor in self._tensors.values():
            self._driver.free(tensor.device)
            self._driver.free_host(tensor.host)
        self._tensors = {}

    def _check(self, feeds: Mapping[str, np.ndarray], shapes: Mapping[str, Tuple[int, ...]]) -> None:
        fits = set(feeds) == {name for name, _, _ in self.inputs} and all(
            feeds[name].dtype.name == dtype
            and len(shapes[name]) == len(shape)
            and all(want in (-1, got) for want, got in zip(shape, shapes[name]))
            for name, dtype, shape in self.inputs
        )
        if not fits:
            raise GpuRefusal("mismatch", self._wanted(feeds))

    def _wanted(self, feeds: Mapping[str, np.ndarray]) -> str:
        wanted = ", ".join(f"{name} {dtype} {shape}" for name, dtype, shape in self.inputs)
        got = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in feeds.items())
        return f"the engine takes {wanted}; got {got or 'nothing'}"
