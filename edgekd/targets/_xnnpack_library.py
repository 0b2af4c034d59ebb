"""ExecuTorch, if it is installed: its modules, its one thread pool, and its silence.

Typed as `Any`, since most of it ships no types. Importing it sets up the root logger and its runtime writes about the
processor straight to stderr; both are kept from whoever only wanted to run a model.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from edgekd.errors import BackendMissing, UsageError

__all__ = ["BACKEND", "PORTABLE", "et_module", "executorch_version", "quiet", "runtime", "threads_held"]

BACKEND, PORTABLE = "XnnpackBackend", "portable"
"""The delegate, and the kernels of what is outside it."""

_PACKAGE = "executorch"
_open_runners: list[int] = []
"""Thread counts of the runners that are open; the pool must stay as they found it."""


def et_module(name: str) -> Any:
    """A module of ExecuTorch by the part behind `executorch.`.

    Raises:
        BackendMissing: it is not installed, or does not load beside this torch.
    """
    with quiet():
        try:
            return importlib.import_module(f"{_PACKAGE}.{name}")
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendMissing(
                f"ExecuTorch is not installed or does not load ({' '.join(str(error).split())})."
                " Run `pip install edgekd[executorch]`."
            ) from error


def executorch_version() -> str:
    """Its version, "" when the package tells none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return ""


@cache
def runtime() -> Any:
    """The process's one runtime.

    Raises:
        BackendMissing: no ExecuTorch, or a build without XNNPACK.
    """
    found = et_module("runtime").Runtime.get()
    # the kernels of quantized operators that a file leaves outside its delegate
    et_module("kernels.quantized")
    if not found.backend_registry.is_available(BACKEND):
        names = ", ".join(found.backend_registry.registered_backend_names) or "none"
        raise BackendMissing(
            f"ExecuTorch {executorch_version()} here has no {BACKEND} (it has {names}). Run `pip install"
            " --force-reinstall executorch`."
        )
    return found


@contextmanager
def threads_held(threads: int) -> Iterator[int]:
    """Give the thread pool this many threads for as long as the block lasts; yields how many it has.

    A process has one pool, and a delegate keeps hold of the one that it was loaded with: while a runner is open the
    number cannot change.

    Raises:
        UsageError: a runner with another number is open.
    """
    pool = et_module("extension.pybindings.portable_lib")
    with quiet():
        present = int(pool._threadpool_get_thread_count())
    if _open_runners and _open_runners[0] != threads:
        raise UsageError(
            f"ExecuTorch has one thread pool a process, and a model is open on {_open_runners[0]} threads; {threads}"
            " were asked for. Close that runner first, or ask for as many."
        )
    if not _open_runners and present != threads:
        with quiet():
            pool._unsafe_reset_threadpool(threads)
    _open_runners.append(threads)
    try:
        yield int(pool._threadpool_get_thread_count())
    finally:
        _open_runners.remove(threads)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what ExecuTorch writes to stderr and warns about itself, and leave the root logger as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        root.handlers[:] = handlers
        root.setLevel(level)
