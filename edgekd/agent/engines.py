"""TensorRT engines kept beside their model: named by a fingerprint, checked by hash, built again on any mismatch.

An engine is bound to a GPU, a library and a driver. What is bound to something else, or is damaged, is never an
error: it is told and built again. Files are written beside their place and renamed; two builders take turns.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

__all__ = ["Kept", "fingerprint_name", "kept_engine", "timing_name", "write_whole"]

Make = Callable[[bytes], Tuple[bytes, bytes]]
"""Builds: takes a timing cache, empty for none, and gives the engine and the timing cache as it is afterwards."""

_NAME_DIGITS = 12
# what decides how long a kernel takes; the model does not, so every model of a folder shares the timings
_TIMING_KEYS = ("gpu", "compute_capability", "library", "version", "driver_major", "flags")


class Kept(NamedTuple):
    """An engine that is there now.

    Args:
        path: its file; its `.json` stands beside it.
        plan: its bytes.
        sidecar: what the `.json` says: fingerprint, engine_sha256, and what the builder added.
        built: whether it had to be built.
        messages: why, one sentence each; empty when it was found as wanted.
    """

    path: Path
    plan: bytes
    sidecar: Dict[str, Any]
    built: bool
    messages: List[str]


def kept_engine(
    folder: Path, stem: str, wanted: Mapping[str, Any], make: Make, *, facts: Optional[Mapping[str, Any]] = None
) -> Kept:
    """The engine of a model for this GPU: the one that is there if it fits, else a new one.

    Args:
        folder: where engines lie; made if missing.
        stem: the model's name.
        wanted: the fingerprint, plain values.
        make: builds it.
        facts: what else the `.json` of a new one says.

    Raises:
        OSError: the disk refused.
        whatever `make` raises; then nothing was changed but a damaged timing cache removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-{fingerprint_name(wanted)}.engine"
    with _turn(folder):
        messages: List[str] = []
        found = _found(path, wanted, messages)
        if found is not None:
            return Kept(path, found[0], found[1], False, [])
        messages.extend(_others(folder, stem, path.name, wanted))
        timing = folder / timing_name(wanted)
        plan, timings = make(_timings(timing, messages))
        sidecar = {
            "fingerprint": dict(wanted),
            "engine_sha256": hashlib.sha256(plan).hexdigest(),
            **(facts or {}),
        }
        if timings:
            write_whole(timing, hashlib.sha256(timings).digest() + timings)
        write_whole(path.with_name(f"{path.name}.json"), json.dumps(sidecar, indent=2).encode())
        write_whole(path, plan)  # last: an engine never stands without its sidecar
    return Kept(path, plan, sidecar, True, messages or [f"{path.name}: built, there was none."])


def fingerprint_name(wanted: Mapping[str, Any]) -> str:
    """What a file is named after: the GPU generation, the library, and digits of the hash of everything.

    >>> fingerprint_name({"library": "tensorrt", "version": "10.3.0.30", "compute_capability": "8.7"})
    'tensorrt-10.3.0-sm87-85ca947d2533'
    """
    version = ".".join(str(wanted["version"]).split(".")[:3])
    capability = str(wanted["compute_capability"]).replace(".", "")
    return f"{wanted['library']}-{version}-sm{capability}-{_digits(wanted)}"


def timing_name(wanted: Mapping[str, Any]) -> str:
    """The file of kernel timings, shared by every model that is built for the same GPU by the same library."""
    return f"{fingerprint_name({key: wanted.get(key) for key in _TIMING_KEYS})}.timing"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: the disk refused; what was there stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(str(part), str(path))
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _found(path: Path, wanted: Mapping[str, Any], messages: List[str]) -> Optional[Tuple[bytes, Dict[str, Any]]]:
    """The engine under this name if it is whole and what is wanted; else a message, unless there is none."""
    try:
        plan = path.read_bytes()
        sidecar: Dict[str, Any] = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        told, digest = sidecar["fingerprint"], sidecar["engine_sha256"]
    except FileNotFoundError:
        if path.exists():
            messages.append(f"{path.name}: its .json is missing, so it is built again.")
        return None
    except (OSError, ValueError, KeyError, TypeError):
        messages.append(f"{path.name}: its .json is damaged, so it is built again.")
        return None
    if hashlib.sha256(plan).hexdigest() != digest:
        messages.append(f"{path.name}: is damaged, so it is built again.")
        return None
    if told != _plain(wanted):
        messages.append(f"{path.name}: {_difference(told, wanted)}, so it is built again.")
        return None
    return plan, sidecar


def _others(folder: Path, stem: str, name: str, wanted: Mapping[str, Any]) -> List[str]:
    """What engines of the same model under other names were built for."""
    told = []
    for file in sorted(folder.glob(f"{stem}-*.engine.json")):
        if file.name == f"{name}.json":
            continue
        try:
            other = json.loads(file.read_text(encoding="utf-8"))["fingerprint"]
            told.append(f"{file.name[: -len('.json')]}: {_difference(other, wanted)}, so another is built.")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return told


def _difference(told: Any, wanted: Mapping[str, Any]) -> str:
    plain = _plain(wanted)
    if not isinstance(told, dict):
        return "does not say what it was built for"
    for key in plain:
        if told.get(key) != plain[key]:
            if key == "onnx_sha256":
                return "was built from another ONNX file"
            return f"was built for {key.replace('_', ' ')} {told.get(key)} and this is {plain[key]}"
    return "was built with more settings"


def _timings(path: Path, messages: List[str]) -> bytes:
    """Kernel timings to start from; a damaged file is removed with a message."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    if hashlib.sha256(content[32:]).digest() == content[:32]:
        return content[32:]
    messages.append(f"{path.name}: the kernel timings are damaged and were thrown away.")
    with contextlib.suppress(OSError):
        path.unlink()
    return b""


def _digits(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_plain(values), sort_keys=True).encode()).hexdigest()[:_NAME_DIGITS]


def _plain(values: Mapping[str, Any]) -> Dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    plain: Dict[str, Any] = json.loads(json.dumps(dict(values)))
    return plain


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One builder at a time; the others wait and then find what it built."""
    try:
        import fcntl
    except ImportError:  # no such lock on Windows: both build, and the last one to rename wins
        yield
        return
    with (folder / ".engines.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
