"""Errors a user can meet, each with the exit code of the command that meets it.

    EdgeKDError                       1
    ├── UsageError                    2   wrong arguments
    │   ├── RecipeError               2   every problem of a recipe, at once
    │   ├── MismatchError             2   two things that must agree do not (classes, shapes, preprocessing)
    │   └── OverwriteRefused          2   the output folder belongs to something else
    ├── ArtifactError                 3   missing, damaged or of the wrong kind
    │   ├── WeightsError              3   a weights file that cannot be loaded into this model
    │   ├── DataError                 3   a data set that is missing, damaged or not usable
    │   ├── ModelFileError            3   an ONNX file that is corrupt or unsafe
    │   └── StorageError              3   the disk refused (full, read-only)
    ├── BackendMissing                4   a package or device that is not here
    ├── OutOfMemory                   3   a training does not fit into memory
    ├── TrainingDiverged              1   a loss term became NaN or infinite
    ├── GateFailed                    1   a valid negative: parity, fusion or budget
    └── Inconclusive                  5   the measurement cannot support a verdict

Anything else that escapes is a fault of edgekd itself: exit code 70, with its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "ArtifactError",
    "BackendMissing",
    "DataError",
    "EdgeKDError",
    "GateFailed",
    "Inconclusive",
    "MismatchError",
    "ModelFileError",
    "OutOfMemory",
    "OverwriteRefused",
    "RecipeError",
    "StorageError",
    "TrainingDiverged",
    "UsageError",
    "WeightsError",
    "did_you_mean",
]


class EdgeKDError(Exception):
    """A mistake or a condition that the user can act on; shown without a traceback.

    The message says what happened with the values, where, and what to do next.
    """

    exit_code = 1


class UsageError(EdgeKDError):
    """The command or call was given something it cannot take."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe has problems; all of them are listed.

    Args:
        source: where the recipe came from (a path or a label).
        problems: one line each, starting with the key it is about.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source}: {len(self.problems)} {noun}\n{lines}")


class MismatchError(UsageError):
    """Two sides that must agree (teacher and student, model and data) do not; both are named."""


class OverwriteRefused(UsageError):
    """The output folder holds something else; nothing was touched."""


class ArtifactError(EdgeKDError):
    """An artifact is missing, damaged, or of another kind than the command needs."""

    exit_code = 3


class WeightsError(ArtifactError):
    """A weights file is missing, truncated, a pickle, or does not fit the model."""


class DataError(ArtifactError):
    """A data set is missing, damaged or cannot be used as asked."""


class ModelFileError(ArtifactError):
    """An ONNX file is corrupt, reaches outside its folder, or has inputs that cannot be made."""


class StorageError(ArtifactError):
    """The disk refused a write; what was sealed before is untouched."""


class BackendMissing(EdgeKDError):
    """A package, runtime or device is not available; the message names the extra that brings it."""

    exit_code = 4


class OutOfMemory(EdgeKDError):
    """A training does not fit into memory; the message says what to set, and the last checkpoint is kept."""

    exit_code = 3


class TrainingDiverged(EdgeKDError):
    """A loss term became NaN or infinite; the last checkpoint is kept."""


class GateFailed(EdgeKDError):
    """A valid negative result: a budget, parity or fusion gate was missed."""


class Inconclusive(EdgeKDError):
    """The measurement does not support a verdict; the message says what would."""

    exit_code = 5


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Say which valid name is nearest, and list them all when none is near.

    >>> did_you_mean("temprature", ["tau", "temperature"])
    "Did you mean 'temperature'?"
    >>> did_you_mean("zzz", ["kd", "hint"])
    'Valid names: hint, kd.'
    """
    names = sorted(set(valid))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Valid names: {', '.join(names)}." if names else "There are no valid names here."
