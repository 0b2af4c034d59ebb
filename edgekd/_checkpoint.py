"""The state of a training run after any of its steps, and its files: the last state, and the best weights so far."""

from __future__ import annotations

import io
import pickle
import random
import threading
import zipfile
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from edgekd._background import background
from edgekd._files import write_whole
from edgekd.errors import ArtifactError

__all__ = [
    "Best",
    "Writer",
    "best_file",
    "forget",
    "random_state",
    "read_best",
    "read_checkpoint",
    "restore_random_state",
    "snapshot",
    "write_checkpoint",
]

_FORMAT = 2
_BROKEN = (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError)


def write_checkpoint(path: Path, state: Mapping[str, Any], *, tag: str) -> None:
    """Write a training state whole or not at all.

    Args:
        path: the file; its folder is made.
        state: tensors, numbers, strings and containers of them: nothing that needs code to load.
        tag: what the state belongs to.

    Raises:
        StorageError: the disk refused; the previous checkpoint is untouched.
    """
    # to memory first: a full disk is then an ordinary write error, and never a torn file
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "tag": tag, "state": dict(state)}, buffer)
    write_whole(path, buffer.getvalue())


def read_checkpoint(path: Path, *, tag: str) -> dict[str, Any] | None:
    """The state written with the same tag; None if there is no file or it belongs to something else.

    Raises:
        ArtifactError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        raise ArtifactError(
            f"Checkpoint {path} is damaged and cannot be resumed. Delete it to train this stage from its start."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("tag") != tag:
        return None
    state: dict[str, Any] = content["state"]
    return state


@dataclass(frozen=True)
class Best:
    """The best validation so far: the epoch (0-based) and its value."""

    epoch: int
    value: float


def best_file(checkpoint: Path) -> Path:
    """Where the best weights of a training lie, beside its checkpoint."""
    return checkpoint.with_suffix(".best.safetensors")


def read_best(checkpoint: Path, *, tag: str) -> tuple[Best, dict[str, Tensor]] | None:
    """The best weights written with the same tag; None if there are none, or they belong to something else.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = best_file(checkpoint)
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            if told.get("tag") != tag:
                return None
            best = Best(int(told["epoch"]), float(told["value"]))
            return best, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise ArtifactError(f"{path} is damaged. Delete it to train this stage from its start.") from error


def forget(checkpoint: Path) -> None:
    """Remove a training's files: its result is sealed."""
    for path in (checkpoint, best_file(checkpoint)):
        path.unlink(missing_ok=True)


class Writer:
    """Writes in the background, so that training does not wait for the disk.

    Of several states that wait only the newest is written. What went wrong is raised by the next call.

    Args:
        path: the checkpoint.
        tag: what it belongs to.
    """

    def __init__(self, path: Path, tag: str) -> None:
        self._path, self._tag = path, tag
        self._worker = background("checkpoint")
        self._lock = threading.Lock()
        self._state: Mapping[str, Any] | None = None
        self._best: tuple[Best, Mapping[str, Tensor]] | None = None
        self._pending: list[Future[None]] = []

    def put(self, state: Mapping[str, Any], best: tuple[Best, Mapping[str, Tensor]] | None = None) -> None:
        """Write the state of training, and the best weights if they are new; neither must change any more.

        Raises:
            StorageError: an earlier write was refused.
        """
        done = [one for one in self._pending if one.done()]
        self._pending = [one for one in self._pending if one not in done]
        for one in done:
            one.result()
        with self._lock:
            self._state = state
            self._best = best or self._best
        self._pending.append(self._worker.submit(self._write))

    def flush(self) -> None:
        """Wait until all is on the disk.

        Raises:
            StorageError: the disk refused.
        """
        pending, self._pending = self._pending, []
        for one in pending:
            one.result()

    def close(self) -> None:
        """Wait and end, whatever happened; what was refused is not told again."""
        self._worker.shutdown(wait=True)

    def _write(self) -> None:
        with self._lock:
            state, best = self._state, self._best
            self._state = self._best = None
        if state is None:
            return  # a newer one than this call's was written already
        if best is not None:
            # before the state that counts on it: what a crash leaves is then a best that is too new, and made again
            found, weights = best
            told = {"tag": self._tag, "epoch": str(found.epoch), "value": repr(found.value)}
            whole = {name: value.contiguous() for name, value in weights.items()}
            write_whole(best_file(self._path), safetensors.torch.save(whole, told))
        write_checkpoint(self._path, state, tag=self._tag)


def snapshot(value: Any) -> Any:
    """A copy of a state on the CPU that later steps do not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [snapshot(item) for item in value]
    return value


def random_state() -> dict[str, Any]:
    """Every generator that training draws from, as plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, spare = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, list(words), spare],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue every generator where `random_state` saw it."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, spare = state["python"]
    random.setstate((version, tuple(words), spare))
