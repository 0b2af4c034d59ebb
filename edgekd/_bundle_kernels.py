"""The same model computed by other kernels of ONNX Runtime: how far answers may be apart that are all right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from edgekd.targets._onnxruntime import CPU, ort_errors, session_options

__all__ = ["other_answers"]


def other_answers(path: Path, inputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What a checked ONNX file answers with every fusion left out, and with the signed kernels that Arm uses.

    A Q/DQ graph without fusions computes in float32 between its roundings; fused it computes in integers. A way that
    this runtime does not have for the model is left out.
    """
    plain = session_options(threads=1)
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found = []
    for options in (plain, session_options(threads=1, int8_activations=True), session_options(threads=1)):
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=[CPU])
            names = [one.name for one in session.get_outputs()]
            found.append(dict(zip(names, session.run(names, dict(inputs)), strict=True)))
        except ort_errors():
            continue
    return found
