"""What every device of the catalog keeps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekd.catalog import CATALOGS
from edgekd.devices._base import Device

CATALOG = CATALOGS["devices"]
NAMES = CATALOG.names()


def made(name: str) -> Device:
    member: type[Any] = CATALOG.load(name).member
    device: Device = member(member.Options())
    return device


def test_catalog_has_its_members() -> None:
    assert len(NAMES) >= 1
    assert "cpu" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_member_has_a_summary_and_is_a_device(name: str) -> None:
    assert CATALOG.summary(name).endswith(".")
    assert issubclass(CATALOG.load(name).member, Device)


@pytest.mark.parametrize("name", NAMES)
def test_fingerprint_is_json_and_identifies_the_processor(name: str) -> None:
    fingerprint = made(name).fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert {"model", "features", "governor", "clocks_mhz", "temperatures_c", "memory_bytes"} <= set(fingerprint)


@pytest.mark.parametrize("name", NAMES)
def test_pinned_gives_cores_and_can_be_nested(name: str) -> None:
    device = made(name)
    with device.pinned(1) as outer, device.pinned(1) as inner:
        assert len(outer) <= 1
        assert inner == outer
