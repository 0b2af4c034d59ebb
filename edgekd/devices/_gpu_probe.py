"""Whether a provider really opens a session: tried on a model of one addition."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekd.devices._place import Place, SessionSettings
from edgekd.errors import EdgeKDError

__all__ = ["opens"]

_NAME = "edgekd-probe.onnx"
_SIZE = 4


def opens(place: Place, provider: str, options: Mapping[str, str]) -> bool:
    """Put the model there, run it on the provider alone, and see whether the answer is right."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [_SIZE]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    array = np.arange(_SIZE, dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="edgekd-probe-") as folder:
        file = Path(folder) / _NAME
        onnx.save(model, file)
        try:
            place.put({_NAME: file})
            session = SessionSettings(provider=provider, provider_options=dict(options), cores=None)
            (answer,) = place.run(_NAME, [{"x": array}], session)
        except EdgeKDError:
            return False
    return bool(np.array_equal(answer["y"], 2 * array))
