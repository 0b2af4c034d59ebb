"""The stand-in phone on a desk: what the tests of the adb device share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from fake_adb import SERIAL, phone
from onnx import TensorProto, helper, numpy_helper

from edgekd.devices._adb_place import AdbPlace
from edgekd.devices._place import SessionSettings, Timing
from edgekd.devices.adb import Adb

SESSION = SessionSettings(cores=None)
QUICK = Timing(queries=2, max_seconds=20.0, warmup_min=4, window=2, warmup_max_seconds=1.0, steady=0.9)
FEEDS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


def net(path: Path, *, weight: float = 2.0) -> Path:
    """y = weight x + 1, with a second output of a name that no file could have."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "w"], ["m"], name="mul"),
            helper.make_node("Add", ["m", "one"], ["y"], name="add"),
            helper.make_node("Neg", ["y"], ["out/neg.0"], name="neg"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 3]) for name in ("y", "out/neg.0")],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("w", weight), ("one", 1.0))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


class Desk:
    """The stand-in phone, and a device that reaches it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "phone"
        self.options = phone(folder)

    def device(self, serial: str = SERIAL, **changed: object) -> Adb:
        return Adb(Adb.Options(**{**self.options, **changed}), serial)  # type: ignore[arg-type]

    def open(self, **changed: object) -> AdbPlace:
        return self.device(**changed).open()

    def there(self) -> list[str]:
        """What lies in the phone's folder for programs."""
        return sorted(entry.name for entry in (self.root / "data/local/tmp").iterdir())

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]
