"""OpenVINO's CPU plugin as a Runner: one stream, its threads and precision stated and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgekd.errors import MismatchError, ModelFileError, UsageError
from edgekd.spec import TensorSpec
from edgekd.targets._modelfile import UNKNOWN_RANK, model_from_bytes, model_inputs, model_outputs, read_model
from edgekd.targets._openvino_library import DEVICE, core, openvino_errors, openvino_library, reason

__all__ = ["IR_SUFFIX", "OpenVinoRunner"]

IR_SUFFIX = ".xml"
_KEPT_SHAPES = 4
"""Compiled models kept open: evaluation has a usual batch and a last, smaller one."""


class OpenVinoRunner:
    """Run an ONNX file or an OpenVINO IR (.xml with its .bin) on the CPU plugin.

    The model is compiled for the very shape of its input, which is faster than for any: for batch 1 at once, for
    another shape when it first comes. Whoever calls `run` is the first of its threads.

    Args:
        source: the file, checked before it is opened, or a serialized ONNX model.
        threads: of one inference, >= 1; one stream, one thread a core.
        exact_threads: refuse when the plugin takes fewer threads than asked.
        profile: measure every layer.

    Raises:
        ModelFileError: the model is damaged, unsafe, or not accepted by the runtime.
        UsageError: the plugin takes another number of threads.
        BackendMissing: no OpenVINO.
    """

    def __init__(
        self, source: Path | bytes, *, threads: int = 1, exact_threads: bool = True, profile: bool = False
    ) -> None:
        self._where = "model in memory" if isinstance(source, bytes) else str(source)
        self._config = _config(threads, profile)
        self._requests: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._model: Any
        self._model, self.inputs, self.outputs = _read(source, self._where)
        self.provider_requested = DEVICE
        first = self._first_shapes()
        self.compiled: Any = self._compile(first)
        self._last = self._requests[first or ()] = self.compiled.create_infer_request()
        self.provider_used: str = ",".join(self.compiled.get_property("EXECUTION_DEVICES"))
        self.threads = int(self.compiled.get_property("INFERENCE_NUM_THREADS"))
        if exact_threads and self.threads != threads:
            raise UsageError(
                f"{self._where}: {threads} threads were asked for and OpenVINO takes {self.threads}: one for each core"
                " that the process might use when it first opened a model. Ask for as many, or do not pin it to fewer."
            )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; keys are input names, the result's keys are output names.

        Raises:
            MismatchError: the feeds do not fit the model's inputs.
        """
        if self._model is None:
            raise RuntimeError(f"runner of {self._where} is closed")
        self._check(feeds)
        arrays = [np.ascontiguousarray(feeds[spec.name]) for spec in self.inputs]
        try:
            self._last = request = self._request(tuple(array.shape for array in arrays))
            request.infer(dict(enumerate(arrays)), share_inputs=True)
        except openvino_errors() as error:
            raise MismatchError(f"{self._where}: {reason(error)}. {self._wanted(feeds)}") from error
        # a copy: the request's own buffer is overwritten by its next run
        return {spec.name: request.get_output_tensor(i).data.copy() for i, spec in enumerate(self.outputs)}

    def layer_times(self) -> list[Any]:
        """What the last run took, layer by layer; needs `profile`."""
        return list(self._last.get_profiling_info())

    def close(self) -> None:
        """Free the compiled models; a second call does nothing."""
        self._requests.clear()
        self.compiled = self._model = self._last = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """The inputs' shapes at batch 1; None when another dimension is open too."""
        shapes = []
        for spec in self.inputs:
            sizes = [1 if axis == 0 and isinstance(size, str) else size for axis, size in enumerate(spec.shape)]
            if spec.shape == [UNKNOWN_RANK] or any(isinstance(size, str) for size in sizes):
                return None
            shapes.append(tuple(int(size) for size in sizes))
        return tuple(shapes)

    def _request(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        if () in self._requests:  # compiled for any shape
            return self._requests[()]
        if shapes not in self._requests:
            if len(self._requests) >= _KEPT_SHAPES:
                del self._requests[list(self._requests)[1]]  # the first stays: it is the one that is measured
            self._requests[shapes] = self._compile(shapes).create_infer_request()
        return self._requests[shapes]

    def _compile(self, shapes: tuple[tuple[int, ...], ...] | None) -> Any:
        model = self._model
        try:
            if shapes is not None:
                model = model.clone()
                model.reshape({index: list(shape) for index, shape in enumerate(shapes)})
            return core().compile_model(model, DEVICE, self._config)
        except openvino_errors() as error:
            raise ModelFileError(f"{self._where}: OpenVINO refuses the model: {reason(error)}.") from error

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        """OpenVINO itself runs on without an input, or casts one of another type, and says nothing."""
        fits = set(feeds) == {spec.name for spec in self.inputs} and all(
            feeds[spec.name].dtype.name == spec.dtype and _fits(feeds[spec.name].shape, spec.shape)
            for spec in self.inputs
        )
        if not fits:
            raise MismatchError(f"{self._where}: {self._wanted(feeds)}")

    def _wanted(self, feeds: Mapping[str, np.ndarray]) -> str:
        wanted = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in self.inputs)
        got = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in feeds.items())
        return f"The model takes {wanted}; got {got or 'nothing'}."


def _config(threads: int, profile: bool) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # where the processor has bfloat16 or float16 arithmetic, the plugin would round every float layer to it
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_HYPER_THREADING": False,
        # whoever measures has pinned the process already; the plugin would move its threads to other cores
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": profile,
    }


def _read(source: Path | bytes, where: str) -> tuple[Any, list[TensorSpec], list[TensorSpec]]:
    """The runtime's model, its inputs and its outputs."""
    openvino_library()
    if isinstance(source, Path) and source.suffix == IR_SUFFIX:
        _check_ir(source)
        model = _opened(str(source), where)
        return model, [_spec(port) for port in model.inputs], [_spec(port) for port in model.outputs]
    proto = model_from_bytes(source) if isinstance(source, bytes) else read_model(source, external_data=False)
    model = _opened(source if isinstance(source, bytes) else str(source), where)
    # from the file itself, which names its open dimensions
    return model, model_inputs(proto), model_outputs(proto)


def _opened(source: bytes | str, where: str) -> Any:
    try:
        return core().read_model(source)
    except openvino_errors() as error:
        raise ModelFileError(
            f"{where}: OpenVINO cannot read the model: {reason(error)}. Use operators that it has, or another target."
        ) from error


def _check_ir(path: Path) -> None:
    for file in (path, path.with_suffix(".bin")):
        if not file.is_file():
            raise ModelFileError(f"{file}: no such file. An IR is an .xml and a .bin of one name; copy both.")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path}: the file is empty. Export or copy it again.")


def _spec(port: Any) -> TensorSpec:
    shape: list[int | str] = [UNKNOWN_RANK]
    if port.partial_shape.rank.is_static:
        sizes = enumerate(port.partial_shape)
        shape = [f"{port.any_name}.{axis}" if one.is_dynamic else one.get_length() for axis, one in sizes]
    return TensorSpec(name=port.any_name, dtype=str(np.dtype(port.element_type.to_dtype())), shape=shape)


def _fits(shape: tuple[int, ...], wanted: list[int | str]) -> bool:
    if wanted == [UNKNOWN_RANK]:
        return True
    return len(shape) == len(wanted) and all(
        isinstance(want, str) or size == want for size, want in zip(shape, wanted, strict=True)
    )
