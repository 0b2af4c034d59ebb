"""The runtimes that judge every file, on one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _networks import target

from edgekd.errors import EdgeKDError
from edgekd.spec import Runner

__all__ = ["RUNTIMES", "runner", "runs"]

RUNTIMES = ("onnxruntime", "openvino")

_TARGETS = {"onnxruntime": "onnxruntime_x86", "openvino": "openvino"}


def runner(runtime: str, path: Path) -> Runner:
    """A file opened in a runtime as edgekd opens it: one thread, all optimizations."""
    return target(_TARGETS[runtime]).runner(path, threads=1)


def runs(runtime: str, path: Path) -> dict[str, Any]:
    """What a runtime makes of a file here: operators that could be int8, those that are, and all that run."""
    try:
        audit = target(_TARGETS[runtime]).audit(path)
    except EdgeKDError as error:
        return {"error": str(error)}
    operators = dict(sorted(audit.operators.items()))
    return {"quantizable": audit.quantizable, "int8": audit.int8, "operators": operators}
