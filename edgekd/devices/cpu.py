"""This machine's processor, with its instruction sets, clocks, temperatures and limits."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psutil
from pydantic import Field

from edgekd import spec
from edgekd.devices._agent_place import AgentPlace
from edgekd.devices._base import Device
from edgekd.devices._linux import cgroup_limits, cpu_clocks_mhz, cpu_details, governor, max_clock_khz, temperatures_c
from edgekd.devices._program import BOOTSTRAP, Start
from edgekd.errors import UsageError

__all__ = ["Cpu"]

_TASKS = Path("/proc/self/task")


class Cpu(Device):
    """The processor of this machine."""

    class Options(spec.Options):
        """How a program of its own runs here.

        Args:
            folder: to make its private folder in; the system's temporary one unless given.
            silence_seconds: it is taken to hang when it says nothing for so long.
        """

        folder: str | None = None
        silence_seconds: float = Field(120.0, gt=0.0)

    here: ClassVar[bool] = True

    @classmethod
    def found(cls) -> list[str]:
        """This machine's processor."""
        return ["cpu"]

    def open(self) -> AgentPlace:
        """A process of this interpreter, which answers as a device would."""
        options = self.options if isinstance(self.options, Cpu.Options) else Cpu.Options()
        return AgentPlace(
            Start(
                name="cpu",
                command=[sys.executable, "-c", BOOTSTRAP],
                silence_seconds=options.silence_seconds,
                hello={"folder": options.folder},
            )
        )

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the processor and its state now; a value it does not tell is None.

        `features` has the instruction sets that decide int8 speed; `has_vnni` is whether 8-bit products are summed
        in 32 bits by one instruction (without it, x86 sums pairs in 16 bits, which saturate). Clocks in MHz,
        temperatures in degrees Celsius, memory in bytes.
        """
        details = cpu_details()
        affinity = _allowed_cores()
        load = os.getloadavg() if hasattr(os, "getloadavg") else None
        return {
            **details,
            "machine": platform.machine(),
            "system": platform.system(),
            "kernel": platform.release(),
            "cores_logical": psutil.cpu_count(logical=True),
            "cores_physical": psutil.cpu_count(logical=False),
            "cores_allowed": len(affinity) if affinity else None,
            "memory_bytes": psutil.virtual_memory().total,
            "governor": governor(),
            "clocks_mhz": cpu_clocks_mhz(),
            "temperatures_c": temperatures_c(),
            "cgroup": cgroup_limits(),
            "load_average": list(load) if load else None,
        }

    @contextmanager
    def pinned(self, threads: int) -> Iterator[list[int]]:
        """Pin every thread of this process, and those it starts, to the `threads` fastest cores.

        Open runners inside: the threads of a session that exists already are moved too, but new ones
        inherit. Where the system cannot pin, nothing is done and the list is empty.

        Raises:
            UsageError: fewer cores are allowed to this process than asked for.
        """
        allowed = _allowed_cores()
        if allowed is None:
            yield []
            return
        if not 1 <= threads <= len(allowed):
            raise UsageError(
                f"threads must be 1 to {len(allowed)}, the cores this process may use, got {threads}."
                " Set bench.threads."
            )
        # cores of a big.LITTLE processor differ: the fastest first, then by number
        chosen = sorted(sorted(allowed, key=lambda core: (-max_clock_khz(core), core))[:threads])
        before = {task: _affinity(task) for task in _tasks()}
        _set_all(set(chosen))
        try:
            yield chosen
        finally:
            for task in _tasks():
                _pin(task, before.get(task) or allowed)


def _allowed_cores() -> set[int] | None:
    """Cores this process may use, or None where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _tasks() -> list[int]:
    """Thread ids of this process; affinity belongs to a thread, not to a process."""
    return [int(entry.name) for entry in _TASKS.iterdir()] if _TASKS.is_dir() else [0]


def _affinity(task: int) -> set[int] | None:
    try:
        return os.sched_getaffinity(task)
    except ProcessLookupError:  # it ended since it was listed
        return None


def _set_all(cores: set[int]) -> None:
    for task in _tasks():
        _pin(task, cores)


def _pin(task: int, cores: set[int]) -> None:
    try:
        os.sched_setaffinity(task, cores)
    except ProcessLookupError:  # it ended since it was listed
        return
