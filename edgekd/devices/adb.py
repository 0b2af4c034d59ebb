"""An Android phone over adb; a runner program of the user's is pushed, started and timed there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from pydantic import Field

from edgekd import spec
from edgekd.devices._adb_link import AdbLink
from edgekd.devices._adb_place import AdbPlace
from edgekd.devices._adb_state import phone_of, reading_of
from edgekd.devices._base import Device
from edgekd.errors import BackendMissing, UsageError

__all__ = ["Adb"]


class Adb(Device):
    """One phone, by its serial number; "adb" alone is the only one connected.

    Args:
        options: this device's options.
        argument: the serial as `adb devices` lists it, "" for the only one.
    """

    takes_argument = True

    class Options(spec.Options):
        """What is pushed and how.

        Args:
            runner: `onnxruntime_perf_test` built for the phone; needed for everything but asking what the phone is.
            verifier: the same program of a debug build that writes its tensors to files; needed for answers.
            libraries: folder with the shared libraries that they need.
            adb: the adb program.
            folder: an existing folder on the phone; a private one is made in it and removed at the end.
            taskset: hexadecimal mask of cores; empty to pin to the fastest.
            timeout_seconds: silence after which the phone counts as hanging.
        """

        runner: str = ""
        verifier: str = ""
        libraries: str = ""
        adb: str = "adb"
        folder: str = Field("/data/local/tmp", pattern=r"^(/[A-Za-z0-9._-]+)+$")
        taskset: str = Field("", pattern=r"^[0-9a-f]{0,16}$")
        timeout_seconds: float = Field(120.0, gt=0.0)

    def __init__(self, options: spec.Options, argument: str = "") -> None:
        super().__init__(options)
        if argument and (argument.startswith("-") or any(letter.isspace() for letter in argument)):
            raise UsageError(f"'adb:{argument}' is no serial number. Write it as 'adb devices' lists it.")
        self.argument = argument
        self.name = f"adb:{argument}" if argument else "adb"

    @classmethod
    def found(cls) -> list[str]:
        """The phones that `adb devices` lists, also those that have not said yes to this computer."""
        program = shutil.which("adb")
        if program is None:
            return []
        try:
            done = subprocess.run(
                [program, "devices"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return []
        rows = [line.split("\t") for line in done.stdout.splitlines()[1:] if "\t" in line]
        return [f"adb:{row[0]}" for row in rows]

    def open(self) -> AdbPlace:
        """Connect to the phone and make a folder there.

        Raises:
            BackendMissing: no adb, no phone, or it is not authorized.
        """
        options = self._mine()
        return AdbPlace(
            self._link(),
            runner=_file(options.runner, "runner"),
            verifier=_file(options.verifier, "verifier"),
            libraries=_folder(options.libraries),
            base=options.folder,
            taskset=options.taskset,
        )

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the phone and its state now; a value that it does not tell is None."""
        link = self._link()
        link.state()
        phone = phone_of(link)
        now = reading_of(link, phone, 0.0)
        return {
            **phone.details,
            "machine": phone.machine,
            "cores_logical": phone.cores,
            "memory_bytes": phone.memory_bytes,
            "clocks_mhz": now.clocks_mhz,
            "temperatures_c": now.temperatures_c,
            "throttled": now.throttled,
        }

    def _link(self) -> AdbLink:
        options = self._mine()
        return AdbLink(options.adb, self.argument, name=self.name, timeout_seconds=options.timeout_seconds)

    def _mine(self) -> Adb.Options:
        if not isinstance(self.options, Adb.Options):
            raise TypeError("an adb device takes Adb.Options")
        return self.options


def _file(given: str, option: str) -> Path | None:
    if not given:
        return None
    path = Path(given).expanduser()
    if not path.is_file():
        raise BackendMissing(f"The option {option} of the adb device names '{given}', which is no file.")
    return path


def _folder(given: str) -> Path | None:
    if not given:
        return None
    path = Path(given).expanduser()
    if not path.is_dir():
        raise BackendMissing(f"The option libraries of the adb device names '{given}', which is no folder.")
    return path
