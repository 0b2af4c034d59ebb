"""TensorRT, whichever is installed: its module and its one logger.

`tensorrt` (10, 11) and `tensorrt_rtx` share one Python interface and differ in what they offer; every difference is
asked of the module itself, never of its name. Both are typed as `Any`, because neither ships type information.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from edgekd.errors import BackendMissing

__all__ = ["NO_DRIVER", "Messages", "messages", "trt_library", "trt_logger"]

_NAMES = ("tensorrt", "tensorrt_rtx")
NO_DRIVER = "checkMacros.cpp::catchCudaError"
"""What the builder says on a machine without a driver, beside the real cause."""


@cache
def trt_library() -> tuple[Any, str, str]:
    """The TensorRT that is installed: (module, name, version).

    `tensorrt` wins over `tensorrt_rtx`, because it is the one that a machine with a matching GPU installs on purpose.

    Raises:
        BackendMissing: neither can be imported.
    """
    reasons = []
    for name in _NAMES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared libraries do not load
            reasons.append(f"{name}: {error}")
            continue
        if hasattr(module, "Builder"):
            return module, name, str(module.__version__)
        reasons.append(f"{name}: has no Builder (only its type stubs or an empty folder of that name)")
    raise BackendMissing(f"TensorRT is not installed. Install edgekd[tensorrt]. ({'; '.join(reasons)})")


@dataclass
class Messages:
    """What TensorRT said while something was done."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The errors as one line, without what only says that there is no GPU driver."""
        told = [line for line in self.errors if NO_DRIVER not in line] or self.errors
        return "; ".join(" ".join(line.split()) for line in dict.fromkeys(told)) or "TensorRT gave no reason"


class _Sink:
    """Where the logger puts messages; TensorRT keeps the first logger of a process for ever, so there is one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.current = Messages()

    def take(self, severity: str, message: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.current.errors.append(message)
        elif severity == "WARNING":
            self.current.warnings.append(message)


_SINK = _Sink()


@contextmanager
def messages() -> Iterator[Messages]:
    """Collect what TensorRT logs inside the block, instead of letting it print."""
    with _SINK.lock:
        outer, _SINK.current = _SINK.current, Messages()
        try:
            yield _SINK.current
        finally:
            _SINK.current = outer


@cache
def trt_logger() -> Any:
    """The process's one TensorRT logger."""
    trt = trt_library()[0]

    def log(self: Any, severity: Any, message: str) -> None:
        _SINK.take(severity.name, message)

    # the base class is only known at run time, so the class is made by call
    return type("Logger", (trt.ILogger,), {"log": log})()
