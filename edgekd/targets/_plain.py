"""ONNX Runtime without its optimizations: every operator of a file computed as the file says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from edgekd.errors import MismatchError, ModelFileError
from edgekd.targets._modelfile import model_inputs, model_outputs, read_model
from edgekd.targets._onnxruntime import CPU, ort_errors, session_options
from edgekd.targets._session import SessionRunner

__all__ = ["PlainRunner"]


class PlainRunner(SessionRunner):
    """Run a graph operator by operator, Q and DQ included: what the file means, in float arithmetic.

    Nothing is fused, so an int8 file is computed on floats that were rounded to their grids, and no 8-bit kernel
    of this processor takes part.

    Args:
        source: an ONNX file, checked before it is opened, or a model that is known to be sound.
        threads: intra-op threads, >= 1.
        profile_prefix: path prefix of a recording of operator times; None records nothing.

    Raises:
        ModelFileError: the model is damaged, unsafe, or not accepted by the runtime.
    """

    def __init__(self, source: Path | onnx.ModelProto, *, threads: int = 1, profile_prefix: Path | None = None) -> None:
        self.provider_requested = self.provider_used = CPU
        self._where = str(source) if isinstance(source, Path) else "model in memory"
        model = read_model(source, external_data=False) if isinstance(source, Path) else source
        self.inputs = model_inputs(model)
        self.outputs = model_outputs(model)
        options = session_options(threads=threads)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_prefix)
        content = str(source) if isinstance(source, Path) else source.SerializeToString()
        try:
            session = onnxruntime.InferenceSession(content, options, providers=[CPU])
        except ort_errors() as error:
            raise ModelFileError(f"{self._where}: ONNX Runtime refuses the model: {_first_line(error)}.") from error
        self._session = session

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; keys are input names, the result's keys are output names.

        Raises:
            MismatchError: the feeds do not fit the model's inputs.
        """
        names = [spec.name for spec in self.outputs]
        try:
            values = self._open().run(names, feeds)
        except _refused() as error:
            wanted = ", ".join(f"'{spec.name}' {spec.dtype} {spec.shape}" for spec in self.inputs)
            raise MismatchError(f"{self._where}: {_first_line(error)}. The model takes {wanted}.") from error
        return dict(zip(names, values, strict=True))


def _refused() -> tuple[type[Exception], ...]:
    """What a run raises; ValueError for a missing input, found before the runtime is called."""
    return (*ort_errors(), ValueError)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
