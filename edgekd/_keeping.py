"""When the state of a training is written, and how all its processes agree on it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from edgekd._checkpoint import Best, Writer, random_state, read_best, read_checkpoint, restore_random_state, snapshot
from edgekd._stop import Stop

__all__ = ["Keeper"]


class Keeper:
    """Writes the state of a training in the main process, at the end of an epoch and after so many seconds.

    Args:
        checkpoint: the file; None to write nothing.
        tag: what the training is; a file of something else is replaced.
        seconds: longest time between two writes within an epoch.
        accelerator: of this process.
    """

    def __init__(self, checkpoint: Path | None, tag: str, seconds: float, accelerator: Accelerator) -> None:
        self._path, self._tag, self._seconds, self._accelerator = checkpoint, tag, seconds, accelerator
        self._writes = checkpoint is not None and accelerator.is_main_process
        self._writer = Writer(checkpoint, tag) if checkpoint is not None and self._writes else None
        self._last = time.monotonic()
        self.written = False

    def read(self) -> dict[str, Any] | None:
        """The state of this training, if it was begun before.

        Raises:
            ArtifactError: the file is damaged.
        """
        state = None if self._path is None else read_checkpoint(self._path, tag=self._tag)
        self.written = state is not None
        return state

    def read_best(self) -> tuple[Best, dict[str, Tensor]] | None:
        """The best weights so far, if there are any.

        Raises:
            ArtifactError: the file is damaged.
        """
        return None if self._path is None else read_best(self._path, tag=self._tag)

    def agreed(self, stop: Stop) -> tuple[bool, bool]:
        """Whether it is time to write, and whether somebody asked to stop; the same in every process."""
        due = self._writes and time.monotonic() - self._last >= self._seconds
        if self._accelerator.num_processes == 1:
            return due, stop.asked
        asked = torch.tensor([due, stop.asked], dtype=torch.int32, device=self._accelerator.device)
        told = self._accelerator.reduce(asked, reduction="sum").tolist()
        return bool(told[0]), bool(told[1])

    def write(
        self,
        state: Mapping[str, Any],
        carried: Mapping[str, Tensor],
        best: tuple[Best, Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Hand a state to the writer; every process calls it at the same step.

        Args:
            state: equal in all processes.
            carried: what only this process has.
            best: the best weights, if they are new.

        Raises:
            StorageError: an earlier write was refused; the file of before is untouched.
        """
        if self._path is None:
            return
        own = snapshot({"random": random_state(), "carried": carried})
        everybody = gather_object([own]) if self._accelerator.num_processes > 1 else [own]
        if self._writer is not None:
            self._writer.put({**snapshot(state), "processes": everybody}, best)
            self._last = time.monotonic()
        self.written = True

    def take_up(self, state: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
        """Continue this process's random numbers; gives what it carried from step to step.

        None where the training went on with another number of processes: nobody's share is what it was.
        """
        everybody = state["processes"]
        if len(everybody) != self._accelerator.num_processes:
            return None
        own = everybody[self._accelerator.process_index]
        restore_random_state(own["random"])
        carried: Mapping[str, Tensor] = own["carried"]
        return carried

    def flush(self) -> None:
        """Wait until the last state is on the disk.

        Raises:
            StorageError: the disk refused.
        """
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Let a write that has begun end."""
        if self._writer is not None:
            self._writer.close()

    @property
    def told(self) -> str:
        """Where the last checkpoint is, for a message; nothing before the first one."""
        return f"The last checkpoint is kept in {self._path}." if self.written and self._path is not None else ""
