"""Which devices can be reached from here, and what each of them can run: connected to, and tried."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from edgekd.catalog import CATALOGS
from edgekd.devices._base import open_place
from edgekd.devices._place import About, Place, SessionSettings
from edgekd.errors import EdgeKDError
from edgekd.spec import Frozen

__all__ = ["DeviceRow", "reachable"]

# old enough for any runtime that a device may have
_OPSET, _IR_VERSION = 13, 7
_ASKED_ONLY = "ssh"
"""Hosts of ssh's configuration may be anybody's: no connection is made to them unasked."""


class DeviceRow(Frozen):
    """One device.

    Args:
        name: as it is given to --device.
        reachable: whether it answered.
        machine: its processor's architecture.
        processor: the processor's or the board's name.
        system: operating system and its release.
        runtime, runtime_version: what runs models there.
        providers: execution providers that ran a model there just now.
        cores: that a program may use.
        memory_bytes: of the device.
        free_bytes: of the disk that files go to.
        emulated: its times say nothing about the processor that it stands for.
        problem: why it cannot be used; "" if it can.
    """

    name: str
    reachable: bool
    machine: str | None = None
    processor: str | None = None
    system: str | None = None
    runtime: str | None = None
    runtime_version: str | None = None
    providers: list[str] = Field(default_factory=list)
    cores: int | None = None
    memory_bytes: int | None = None
    free_bytes: int | None = None
    emulated: bool = False
    problem: str = ""


def reachable(
    names: Sequence[str] = (), *, options: Mapping[str, Any] | None = None, ssh: bool = False
) -> list[DeviceRow]:
    """Connect to each device, run a tiny model there on every execution provider, and close.

    Args:
        names: devices; none for all that can be seen from here.
        options: of the devices named.
        ssh: connect to the hosts of ssh's configuration, too.

    Raises:
        UsageError: there is no such device, or it does not take the options.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-devices-") as folder:
        model = _tiny_model(Path(folder) / "tiny.onnx")
        rows = [_row(name, options, model) for name in names]
        if not names or ssh:
            rows += [_row(name, None, model) for name in _found(ssh) if name not in names]
    return rows


def _found(ssh: bool) -> list[str]:
    catalog = CATALOGS["devices"]
    names: list[str] = []
    for member in catalog.names():
        if member != _ASKED_ONLY or ssh:
            names += catalog.load(member).member.found()
    return names


def _row(name: str, options: Mapping[str, Any] | None, model: Path) -> DeviceRow:
    try:
        with open_place(name, options) as place:
            about = place.about()
            providers, problem = _providers(place, about, model)
    except EdgeKDError as error:
        if error.exit_code == 2:  # a wrong name or option is the user's to repair, not the device's
            raise
        return DeviceRow(name=name, reachable=False, problem=str(error))
    return DeviceRow(
        name=name,
        reachable=True,
        machine=about.machine,
        processor=about.details.get("board") or about.details.get("model"),
        system=about.system,
        runtime=about.runtime,
        runtime_version=about.runtime_version,
        providers=providers,
        cores=about.cores,
        memory_bytes=about.memory_bytes,
        free_bytes=about.free_bytes,
        emulated=about.emulated,
        problem=problem,
    )


def _providers(place: Place, about: About, model: Path) -> tuple[list[str], str]:
    """The providers that run the model, and why none does."""
    import numpy as np

    feeds = [{"x": np.ones((1, 4), np.float32)}]
    good, problem = [], ""
    try:
        place.put({"tiny.onnx": model})
    except EdgeKDError as error:
        return [], str(error)
    for provider in about.providers:
        try:
            place.run("tiny.onnx", feeds, SessionSettings(provider=provider, cores=None))
            good.append(provider)
        except EdgeKDError as error:
            problem = problem or str(error)
    return good, "" if good else problem


def _tiny_model(path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    shape = [1, 4]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    onnx.save(model, path)
    return path
