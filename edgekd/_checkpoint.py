"""The state of a training run between two epochs, and its file."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd._files import write_whole
from edgekd.errors import ArtifactError

__all__ = ["random_state", "read_checkpoint", "restore_random_state", "write_checkpoint"]

_FORMAT = 1


def write_checkpoint(path: Path, state: dict[str, Any], *, tag: str) -> None:
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
    torch.save({"format": _FORMAT, "tag": tag, "state": state}, buffer)
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
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise ArtifactError(
            f"Checkpoint {path} is damaged and cannot be resumed. Delete it to train this stage from its start."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("tag") != tag:
        return None
    state: dict[str, Any] = content["state"]
    return state


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
