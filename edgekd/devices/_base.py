"""The contract of a device: where a model runs and is measured."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

from edgekd import spec

__all__ = ["Device"]


class Device:
    """A place to run.

    Args:
        options: this device's options.
    """

    Options: ClassVar[type[spec.Options]] = spec.Options

    def __init__(self, options: spec.Options) -> None:
        self.options = options

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the device and its state: processor, features, cores, memory, governor, clocks,
        temperatures; a value the device does not tell is None."""
        raise NotImplementedError

    def pinned(self, threads: int) -> AbstractContextManager[list[int]]:
        """Pin this process to `threads` cores for the duration; gives the cores, none where it cannot be done."""
        raise NotImplementedError
