"""ONNX Runtime as a Runner: one session, its threads and provider stated and checked."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from edgekd.errors import BackendMissing, MismatchError, ModelFileError
from edgekd.targets._modelfile import model_from_bytes, model_inputs, model_outputs, read_model
from edgekd.targets._session import SessionRunner

__all__ = ["CPU", "OnnxRuntimeRunner", "ort_errors", "session_options", "simplified"]

CPU = "CPUExecutionProvider"

_PACKAGES = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "NvTensorRTRTXExecutionProvider": "onnxruntime-trt-rtx",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "QNNExecutionProvider": "onnxruntime-qnn",
    "DmlExecutionProvider": "onnxruntime-directml",
}


class OnnxRuntimeRunner(SessionRunner):
    """Run an ONNX model through ONNX Runtime.

    Args:
        source: an ONNX file, checked before it is opened, or a serialized model.
        threads: intra-op threads, >= 1; operators run one after another.
        provider: the execution provider that every node must run on.
        optimized_path: where to write the graph that really runs.
        profile: record the time of every operator; `profile_path` closes the recording.
        profile_prefix: path prefix of the recording.
        int8_activations: keep signed 8-bit activations, as ONNX Runtime does on Arm, instead of its rewrite to
            unsigned on x86; None leaves the platform's own choice.
        without_optimizers: names of graph optimizers to leave out.
        checked: a model in memory is held against the standard first; without it only the runtime judges.

    Raises:
        ModelFileError: the model is damaged, unsafe, or not accepted by the runtime.
        BackendMissing: this build of ONNX Runtime lacks the provider, or did not start it.
    """

    def __init__(
        self,
        source: Path | bytes,
        *,
        threads: int = 1,
        provider: str = CPU,
        optimized_path: Path | None = None,
        profile: bool = False,
        profile_prefix: Path | None = None,
        int8_activations: bool | None = None,
        without_optimizers: Sequence[str] = (),
        checked: bool = True,
    ) -> None:
        self.provider_requested = provider
        model = (
            model_from_bytes(source, checked=checked)
            if isinstance(source, bytes)
            else read_model(source, external_data=False)
        )
        self.inputs = model_inputs(model)
        self.outputs = model_outputs(model)
        self._output_names = [spec.name for spec in self.outputs]
        self._where = "model in memory" if isinstance(source, bytes) else str(source)
        del model
        _require_provider(provider)
        options = session_options(threads=threads, int8_activations=int8_activations)
        if optimized_path is not None:
            options.optimized_model_filepath = str(optimized_path)
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_prefix or "onnxruntime_profile")
        if provider != CPU:
            # nodes the provider cannot take would otherwise move to the CPU without a word
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        content = source if isinstance(source, bytes) else str(source)
        try:
            session = onnxruntime.InferenceSession(
                content, options, providers=[provider], disabled_optimizers=list(without_optimizers)
            )
        except ort_errors() as error:
            raise ModelFileError(f"{self._where}: ONNX Runtime refuses the model: {_sentence(error)}.") from error
        session.disable_fallback()
        self._session = session
        self.provider_used: str = session.get_providers()[0]
        if self.provider_used != provider:
            raise BackendMissing(f"{provider} was asked for and ONNX Runtime started {self.provider_used} instead.")

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; keys are input names, the result's keys are output names.

        Raises:
            MismatchError: the feeds do not fit the model's inputs.
        """
        try:
            values = self._open().run(self._output_names, feeds)
        except ort_errors() as error:
            raise MismatchError(f"{self._where}: {_sentence(error)}. {_wanted(self, feeds)}") from error
        except ValueError as error:  # a missing input, found before the runtime is called
            raise MismatchError(f"{self._where}: {error}. {_wanted(self, feeds)}") from error
        return dict(zip(self._output_names, values, strict=True))


def session_options(*, threads: int, int8_activations: bool | None = None) -> onnxruntime.SessionOptions:
    """The session settings of every measurement: all graph optimizations, sequential, `threads` intra-op threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if int8_activations is not None:
        options.add_session_config_entry("session.qdqisint8allowed", "1" if int8_activations else "0")
    return options


def simplified(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """A float model after the runtime's basic optimizations: constants folded, normalisations in their convolutions.

    They keep to standard operators and to what the model computes; no layout, precision or fusion of this machine.

    Raises:
        ModelFileError: the runtime refuses the model; `where` is what it is called.
    """
    options = session_options(threads=1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="edgekd-simplify-") as folder:
        file = Path(folder) / "simplified.onnx"
        options.optimized_model_filepath = str(file)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
        except ort_errors() as error:
            raise ModelFileError(f"{where}: ONNX Runtime refuses the model: {_sentence(error)}.") from error
        return onnx.load(file)


def ort_errors() -> tuple[type[Exception], ...]:
    """Every exception type that ONNX Runtime's binding defines."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    found = (value for value in vars(state).values() if isinstance(value, type))
    return tuple(value for value in found if issubclass(value, Exception) and value.__module__ == state.__name__)


def _require_provider(provider: str) -> None:
    available = onnxruntime.get_available_providers()
    if provider in available:
        return
    package = _PACKAGES.get(provider)
    remedy = f"Install {package} in place of onnxruntime." if package else f"This build has: {', '.join(available)}."
    raise BackendMissing(f"ONNX Runtime {onnxruntime.__version__} here has no {provider}. {remedy}")


def _wanted(runner: OnnxRuntimeRunner, feeds: Mapping[str, np.ndarray]) -> str:
    wanted = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in runner.inputs)
    got = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in feeds.items())
    return f"The model takes {wanted}; got {got or 'nothing'}."


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
