"""A Place over a connection to the program on a device."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgekd.agent import frames
from edgekd.agent.storage import is_safe_name
from edgekd.devices._channel import Channel
from edgekd.devices._place import (
    CPU_PROVIDER,
    About,
    Cold,
    Measured,
    NodePlacement,
    Progress,
    SessionSettings,
    Timing,
)
from edgekd.devices._program import Start
from edgekd.errors import (
    BackendMissing,
    EdgeKDError,
    GateFailed,
    MismatchError,
    ModelFileError,
    OutOfMemory,
    StorageError,
    UsageError,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = ["AgentPlace"]

_PIECE_BYTES = 1 << 20
_REQUEST_BYTES = 4 << 20
"""Feeds of about so many bytes go in one request: large enough that the way there and back does not count."""
_REQUEST_FEEDS = 256
_FULL = ("No space", "too large", "quota")
_NUMBERS = re.compile(
    r"[Uu]nsupported model IR version: (?P<ir>\d+), max supported IR version: (?P<ir_max>\d+)"
    r"|[Oo]pset (?P<opset>\d+) is under development.*?till opset (?P<opset_max>\d+)"
)
_EMULATED = {
    "model": "emulated processor",
    **dict.fromkeys(("vendor", "microcode", "features", "has_vnni", "has_dotprod", "clocks_mhz", "max_clocks_mhz")),
}


class AgentPlace:
    """The program on a device, asked by the methods of `Place`.

    Args:
        start: how it is started.
        emulated: its times say nothing about the processor that it stands for.

    Raises:
        BackendMissing: it cannot be reached, or lacks Python or a package.
    """

    def __init__(self, start: Start, *, emulated: bool = False) -> None:
        self.name, self.provider = start.name, CPU_PROVIDER
        self._emulated = emulated
        self._channel = Channel(start)

    @property
    def folder(self) -> str:
        """The folder on the device that holds what is put there, for as long as the connection is open."""
        return str(self._channel.hello["folder"])

    def about(self) -> About:
        """What the device says about itself now."""
        answer, _ = self._asked({"do": "about"})
        if self._emulated or answer["emulated"]:
            # what /proc and /sys tell there is about the processor below
            answer = {**answer, "emulated": True, "details": {**answer["details"], **_EMULATED}}
        return About(**answer)

    def put(self, files: Mapping[str, Path]) -> None:
        """Bring files there, by the relative names that they get; each is checked by its hash after its arrival.

        Raises:
            UsageError: a name that leads out of the folder.
            StorageError: no room there; the file is not there then, not even a part of it.
        """
        for name, path in files.items():
            self._send(name, path, None)

    def install(self, files: Mapping[str, Path], folder: str) -> str:
        """Bring files into a folder there that stays; each replaces an older one only when it is whole and checked.

        Args:
            files: by the relative names that they get.
            folder: on the device: absolute, or beginning with ~ for the user's own; made if it is not there.

        Returns:
            The folder's absolute path; `run` and the others take a file in it by its path.

        Raises:
            UsageError: a name that leads out of the folder, or a folder that is neither.
            StorageError: no room there, or it may not be written.
        """
        if not folder.startswith(("/", "~")):
            raise UsageError(f"The folder on the device must be absolute or begin with ~, got '{folder}'.")
        found = folder
        for name, path in files.items():
            found = self._send(name, path, folder)
        return found

    def run(
        self, model: str, feeds: Sequence[Mapping[str, np.ndarray]], session: SessionSettings
    ) -> list[dict[str, np.ndarray]]:
        """The answers of a model that was put there to each of the feeds; keys are output names."""
        found: list[dict[str, np.ndarray]] = []
        for tables, body in _requests(feeds):
            request = {"do": "run", "model": model, "session": session.model_dump(), "feeds": tables}
            answer, content = self._asked(request, body, model=model)
            offset = 0
            for table in answer["outputs"]:
                values, offset = frames.arrays_unpacked(table, content, offset)
                found.append(values)
        return found

    def measure(
        self,
        models: Mapping[str, str],
        feeds: Mapping[str, np.ndarray],
        *,
        session: SessionSettings,
        timing: Timing,
        progress: Progress | None = None,
    ) -> Measured:
        """Time models that were put there, by name of the caller's choice, interleaved, on the same input."""
        if not models:
            raise UsageError("measure takes at least one model, got none.")
        if timing.warmup_min < 2 * timing.window:
            raise UsageError(
                f"warmup_min must be at least twice the window; got {timing.warmup_min} and {timing.window}."
            )
        table, body = _packed(feeds)
        request = {
            "do": "measure",
            "models": dict(models),
            "feeds": table,
            "session": session.model_dump(),
            "timing": timing.model_dump(),
        }
        answer, _ = self._asked(request, body, model=", ".join(models.values()), progress=progress)
        return Measured(**answer)

    def cold(
        self, model: str, feeds: Mapping[str, np.ndarray], *, session: SessionSettings, repeats: int
    ) -> list[Cold]:
        """Start new processes one after another; each loads the model and runs it once."""
        if repeats < 1:
            raise UsageError(f"repeats must be at least 1, got {repeats}")
        table, body = _packed(feeds)
        request = {
            "do": "cold",
            "model": model,
            "feeds": table,
            "session": session.model_dump(),
            "repeats": repeats,
        }
        answer, _ = self._asked(request, body, model=model)
        return [Cold(**run) for run in answer["runs"]]

    def placement(
        self, model: str, feeds: Mapping[str, np.ndarray], *, session: SessionSettings, runs: int
    ) -> list[NodePlacement]:
        """Which provider ran each node, and how long it took."""
        if runs < 1:
            raise UsageError(f"runs must be at least 1, got {runs}")
        table, body = _packed(feeds)
        request = {"do": "placement", "model": model, "feeds": table, "session": session.model_dump(), "runs": runs}
        answer, _ = self._asked(request, body, model=model)
        return [NodePlacement(**node) for node in answer["nodes"]]

    def close(self) -> None:
        """End the program there, which removes what was put; a second call does nothing."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, name: str, path: Path, folder: str | None) -> str:
        """Send a file in pieces; the folder that it came to, "" for the one that does not stay."""
        if not is_safe_name(name):
            raise UsageError(f"'{name}' is no name for a file on a device: it must be relative and stay inside.")
        digest, offset, size = hashlib.sha256(), 0, path.stat().st_size
        with path.open("rb") as file:
            while True:
                piece = file.read(_PIECE_BYTES)
                digest.update(piece)
                last = len(piece) < _PIECE_BYTES
                request = {"do": "put", "name": name, "folder": folder, "offset": offset}
                request["sha256"] = digest.hexdigest() if last else None
                answer, _ = self._asked(request, piece, model=name, size=size)
                offset += len(piece)
                if last:
                    return str(answer.get("folder", ""))

    def _asked(
        self,
        request: Mapping[str, Any],
        body: bytes = b"",
        *,
        model: str = "",
        size: int = 0,
        progress: Progress | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        message, content = self._channel.ask(request, body, progress=progress)
        if "error" in message:
            raise _error_of(self.name, model, size, message)
        answer: dict[str, Any] = message["ok"]
        return answer, content


def _packed(feeds: Mapping[str, np.ndarray]) -> tuple[list[dict[str, Any]], bytes]:
    try:
        return frames.arrays_packed(feeds)
    except TypeError as error:
        raise MismatchError(f"Input {error}; a device is fed with numbers only.") from error


def _requests(feeds: Sequence[Mapping[str, np.ndarray]]) -> Any:
    """The feeds in groups of a reasonable size: tables and bytes of each group."""
    tables: list[Any] = []
    parts: list[bytes] = []
    total = 0
    for one in feeds:
        table, body = _packed(one)
        if tables and (total + len(body) > _REQUEST_BYTES or len(tables) >= _REQUEST_FEEDS):
            yield tables, b"".join(parts)
            tables, parts, total = [], [], 0
        tables.append(table)
        parts.append(body)
        total += len(body)
    if tables:
        yield tables, b"".join(parts)


def _error_of(name: str, model: str, size: int, message: Mapping[str, Any]) -> EdgeKDError:
    """What the user is told about a refusal of the program there."""
    kind, text = str(message["error"]), str(message.get("text", "")).rstrip(".")
    where = f"{name}: {model}" if model else name
    if kind == "storage":
        free = message.get("free_bytes")
        room = "" if free is None else f"; {free} bytes are free there"
        needed = f" ({size} bytes)" if size else ""
        remedy = "Make room there" if any(word in text for word in _FULL) else "Look at its rights"
        return StorageError(f"{where}{needed} cannot be written there: {text}{room}. {remedy}, or give another folder.")
    if kind == "model":
        version = message.get("runtime_version")
        return ModelFileError(f"{where}: ONNX Runtime {version} there refuses the model: {_too_new(text) or text}.")
    plain: dict[str, type[EdgeKDError]] = {
        "mismatch": MismatchError,
        "usage": UsageError,
        "missing": BackendMissing,
        "gate": GateFailed,
        "memory": OutOfMemory,
    }
    if kind in plain:
        return plain[kind](f"{where}: {text}.")
    return BackendMissing(f"{where}: the program there failed: {text}.")


def _too_new(text: str) -> str:
    """What is too new and what to do, with the numbers from the runtime's words; "" if that is not what they say."""
    found = _NUMBERS.search(text)
    if found is None:
        return ""
    what, given, most = (
        ("IR version", found["ir"], found["ir_max"]) if found["ir"] else ("opset", found["opset"], found["opset_max"])
    )
    return (
        f"it has {what} {given}, and that runtime reads up to {most}. Update onnxruntime there, or export the model for"
        f" {what} {most}"
    )
