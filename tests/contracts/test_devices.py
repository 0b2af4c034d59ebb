"""What every device of the catalog keeps."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from typing import Any

import pytest

from edgekd.catalog import CATALOGS
from edgekd.devices._base import Device, open_place
from edgekd.errors import BackendMissing, UsageError

CATALOG = CATALOGS["devices"]
NAMES = CATALOG.names()
HERE = [name for name in NAMES if CATALOG.load(name).member.here]


def made(name: str) -> Device:
    member: type[Any] = CATALOG.load(name).member
    takes_argument = "argument" in inspect.signature(member).parameters
    device: Device = member(member.Options(), "somewhere") if takes_argument else member(member.Options())
    return device


def test_catalog_has_its_members() -> None:
    assert {"cpu", "ssh", "emulated_arm64"} <= set(NAMES)
    assert "cpu" in HERE


@pytest.mark.parametrize("name", NAMES)
def test_member_has_a_summary_and_is_a_device(name: str) -> None:
    assert CATALOG.summary(name).endswith(".")
    assert issubclass(CATALOG.load(name).member, Device)


@pytest.mark.parametrize("name", NAMES)
def test_member_can_be_made_from_its_defaults_and_opened(name: str) -> None:
    device = made(name)
    assert type(device).open is not Device.open
    assert device.Options.model_config["extra"] == "forbid"


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_is_refused_with_those_that_there_are(name: str) -> None:
    argument = ":somewhere" if "argument" in inspect.signature(CATALOG.load(name).member).parameters else ""
    with pytest.raises(UsageError, match=rf"device '{name}.*option bogus: .*Options: "):
        open_place(f"{name}{argument}", {"bogus": 1})


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HERE])
def test_a_device_elsewhere_never_pins_this_process(name: str) -> None:
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with contextlib.suppress(UsageError), made(name).pinned(1) as cores:
        assert cores == []
    assert before is None or os.sched_getaffinity(0) == before


def _fingerprint(device: Device) -> dict[str, Any]:
    try:
        return device.fingerprint()
    except BackendMissing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", HERE)
def test_fingerprint_is_json_and_identifies_the_processor(name: str) -> None:
    fingerprint = _fingerprint(made(name))
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert {"model", "features", "governor", "clocks_mhz", "temperatures_c", "memory_bytes"} <= set(fingerprint)


@pytest.mark.parametrize("name", HERE)
def test_pinned_gives_cores_and_can_be_nested(name: str) -> None:
    device = made(name)
    _fingerprint(device)
    with device.pinned(1) as outer, device.pinned(1) as inner:
        assert len(outer) <= 1
        assert inner == outer
