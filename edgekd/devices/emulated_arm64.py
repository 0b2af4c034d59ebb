"""64-bit Arm under qemu on this machine: answers of Arm's kernels, and times that are no latency."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from edgekd import spec
from edgekd.devices._agent_place import AgentPlace
from edgekd.devices._arm64_userland import USERLAND, userland_command, userland_environment, userland_folder
from edgekd.devices._base import Device
from edgekd.devices._program import BOOTSTRAP, Start

__all__ = ["EmulatedArm64"]


class EmulatedArm64(Device):
    """An emulated 64-bit Arm processor.

    Args:
        options: where its userland is.
    """

    class Options(spec.Options):
        """The userland, and how patient to be.

        Args:
            userland: folder made by `benchmarks/arm64_userland.sh`; that of EDGEKD_ARM64_USERLAND unless given.
            folder: to make the private folder in; the system's temporary one unless given.
            silence_seconds: it is taken to hang when it says nothing for so long; emulation is slow.
        """

        userland: str | None = None
        folder: str | None = None
        silence_seconds: float = Field(900.0, gt=0.0)

    @classmethod
    def found(cls) -> list[str]:
        """Itself, where EDGEKD_ARM64_USERLAND says where its userland is."""
        return ["emulated_arm64"] if os.environ.get(USERLAND) else []

    def open(self) -> AgentPlace:
        """An emulated Python, which answers as a device would.

        Raises:
            BackendMissing: there is no userland, or it does not start.
        """
        options = self.options if isinstance(self.options, EmulatedArm64.Options) else EmulatedArm64.Options()
        userland = userland_folder(Path(options.userland) if options.userland else None)
        command = userland_command(userland)
        return AgentPlace(
            Start(
                name="emulated_arm64",
                command=[*command, "-c", BOOTSTRAP],
                environment=userland_environment(userland),
                silence_seconds=options.silence_seconds,
                # an emulated process starts others as itself only through the emulator
                hello={"folder": options.folder, "python": command},
            ),
            emulated=True,
        )
