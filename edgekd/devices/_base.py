"""The contract of a device: where a model runs and is measured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from pydantic import ValidationError

from edgekd import spec
from edgekd.catalog import CATALOGS
from edgekd.devices._place import Place
from edgekd.errors import UsageError

__all__ = ["Device", "open_place"]


class Device:
    """A place to run.

    A device that is reached by a name takes it as a second argument, `argument`: what stands after the colon in
    "ssh:pi@raspberrypi".

    Args:
        options: this device's options.
    """

    Options: ClassVar[type[spec.Options]] = spec.Options
    here: ClassVar[bool] = False
    """Whether it is this machine: then its state can be read, and this process pinned."""

    def __init__(self, options: spec.Options) -> None:
        self.options = options

    @classmethod
    def found(cls) -> list[str]:
        """Names of the devices of this kind that can be seen from here now, without connecting to any."""
        return []

    def open(self) -> Place:
        """Connect to the device; used as a context manager.

        Raises:
            BackendMissing: it cannot be reached, or lacks something; says what, and what to do.
            UsageError: its name or an option is not usable.
        """
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the device and its state: processor, features, cores, memory, governor, clocks,
        temperatures; a value the device does not tell is None."""
        with self.open() as place:
            about = place.about().model_dump()
        details: dict[str, Any] = about.pop("details")
        return {**about, **details}

    def pinned(self, threads: int) -> AbstractContextManager[list[int]]:
        """Pin this process to `threads` cores for the duration; gives the cores, none where it cannot be done.

        Raises:
            UsageError: the device is not this machine; `SessionSettings.cores` pins the program there.
        """
        raise UsageError(f"{type(self).__name__}: only a process on this machine can be pinned from here.")


def open_place(name: str, options: Mapping[str, Any] | None = None) -> Place:
    """Connect to a device by its name in the catalog.

    Args:
        name: "cpu", "emulated_arm64", or with an argument: "ssh:user@host", "adb:SERIAL".
        options: of the device; numbers may be given as text.

    Raises:
        UsageError: no such device, or an option that it does not take.
        BackendMissing: it cannot be reached, or lacks something.
    """
    entry = CATALOGS["devices"].load(name)
    try:
        made = entry.member.Options.model_validate(dict(options or {}), strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"device '{name}': option {key}: {first['msg']}. Options: {', '.join(entry.member.Options.model_fields)}."
        ) from error
    device: Device = entry.member(made, entry.argument) if entry.argument else entry.member(made)
    return device.open()
