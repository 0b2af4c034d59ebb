"""OpenVINO, if it is installed: its module, its one Core, and what its exceptions say.

The module is typed as `Any`: its stubs leave out what the compiled part adds. Only the runtime's own reader is used;
its conversion tools, which report their use over the network, are never imported.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from edgekd.errors import BackendMissing

__all__ = ["DEVICE", "core", "openvino_errors", "openvino_library", "reason"]

DEVICE = "CPU"
"""The plugin that the target is about."""

_NOISE = ("Exception from", "Check '", "While validating", "Summary:", "FrontEnd API failed", "Model wasn't fully")


@cache
def openvino_library() -> Any:
    """The module `openvino`.

    Raises:
        BackendMissing: it is not installed, or its libraries do not load.
    """
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as error:
        raise BackendMissing(
            f"OpenVINO is not installed or does not load ({error}). Run `pip install edgekd[openvino]`."
        ) from error


@cache
def core() -> Any:
    """The process's one Core: its plugins are loaded once.

    Raises:
        BackendMissing: no OpenVINO, or one without the CPU plugin.
    """
    library = openvino_library()
    found = library.Core()
    if DEVICE not in found.available_devices:
        listed = ", ".join(found.available_devices) or "none"
        raise BackendMissing(
            f"OpenVINO {library.__version__} has no {DEVICE} plugin here (it has {listed})."
            " Run `pip install --force-reinstall edgekd[openvino]`."
        )
    return found


def openvino_errors() -> tuple[type[Exception], ...]:
    """What OpenVINO's binding raises: its own exceptions, and RuntimeError for most of them."""
    binding = openvino_library()._pyopenvino
    own = (value for value in vars(binding).values() if isinstance(value, type) and issubclass(value, Exception))
    return (RuntimeError, *own)


def reason(error: Exception) -> str:
    """What an exception says, in one line without the places in OpenVINO's own source.

    >>> reason(RuntimeError("Exception from src/core.cpp:84:\\nPort for tensor name img was not found.\\n"))
    'Port for tensor name img was not found'
    """
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(_NOISE)] or lines or [type(error).__name__]
    return " ".join(told[:2]).rstrip(".")
