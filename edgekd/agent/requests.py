"""What each request of the host does on the device, and what is kept from one to the next."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import time
from typing import IO, Any, Dict, List, Mapping, Optional, Tuple

from . import frames
from .processor import allowed_cores, cgroup_limits, cpu_details, is_emulated, max_clock_khz, memory_bytes
from .sensors import Sensors
from .storage import Work

__all__ = ["Answer", "Requests", "runtime"]

Answer = Tuple[Dict[str, Any], bytes]

_PULSE_SECONDS = 1.0


class Requests:
    """The folder, the sensors and the session that was used last.

    Args:
        out: where progress is told.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._work: Optional[Work] = None
        self._sensors: Optional[Sensors] = None
        self._session: Optional[Tuple[Any, Any]] = None
        self._python = [sys.executable]
        self._told = 0.0

    def close(self) -> None:
        """Remove the folder."""
        self._session = None
        if self._work is not None:
            self._work.remove()

    def free_bytes(self) -> Optional[int]:
        """Room on the disk of the folder; None before there is one."""
        try:
            return self._work.free_bytes() if self._work is not None else None
        except OSError:
            return None

    def done(self, do: str, message: Mapping[str, Any], body: bytes) -> Answer:
        """Do what is asked.

        Raises:
            Exception: whatever goes wrong; a `Refusal` says its kind.
        """
        if do == "hello":
            return self._hello(message), b""
        if do == "bye":
            self.close()
            return {"ok": {}}, b""
        known = {
            "about": self._about,
            "put": self._put,
            "run": self._run,
            "measure": self._measure,
            "cold": self._cold,
            "placement": self._placement,
        }
        if do not in known or self._work is None:
            raise ValueError(f"no request is called '{do}', or there was no hello before it")
        return known[do](message, body)

    def _hello(self, message: Mapping[str, Any]) -> Dict[str, Any]:
        """Make the folder, and see whether numpy and the runtime are there."""
        for name in ("numpy", "onnxruntime"):
            try:
                __import__(name)
            except Exception as error:  # a broken installation raises more than ImportError
                text = f"{type(error).__name__}: {' '.join(str(error).split())}"
                return {"error": "imports", "text": text, "package": name, **_python()}
        self._python = [str(part) for part in message.get("python") or self._python]
        try:
            self._work = Work(message.get("folder"))
        except OSError as error:
            return {"error": "storage", "text": error.strerror or str(error)}
        self._sensors = Sensors()
        return {
            "ok": {
                "folder": str(self._work.folder),
                "swept": self._work.swept,
                "pid": os.getpid(),
                **_python(),
                **runtime(),
            }
        }

    def _about(self, message: Mapping[str, Any], body: bytes) -> Answer:
        import onnxruntime

        cores = allowed_cores()
        speeds = {core: max_clock_khz(core) / 1000 for core in cores or ()}
        details = {
            **cpu_details(),
            **self._kept_sensors().details(),
            "node": platform.node(),
            "cores_logical": os.cpu_count(),
            "max_clocks_mhz": {str(core): mhz for core, mhz in speeds.items()} if any(speeds.values()) else None,
            "cgroup": cgroup_limits(),
            "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        }
        about = {
            "machine": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
            **_python(),
            **runtime(),
            "providers": list(onnxruntime.get_available_providers()),
            "cores": len(cores) if cores else os.cpu_count(),
            "memory_bytes": memory_bytes(),
            "free_bytes": self._kept_work().free_bytes(),
            "emulated": is_emulated(platform.machine()),
            "details": details,
        }
        return {"ok": about}, b""

    def _put(self, message: Mapping[str, Any], body: bytes) -> Answer:
        self._session = None
        work = self._kept_work()
        offset, sha256 = int(message["offset"]), message.get("sha256")
        if message.get("folder") is None:
            work.put(message["name"], body, offset=offset, sha256=sha256)
            return {"ok": {}}, b""
        folder = work.install(message["folder"], message["name"], body, offset=offset, sha256=sha256)
        return {"ok": {"folder": folder}}, b""

    def _run(self, message: Mapping[str, Any], body: bytes) -> Answer:
        session = self._opened(message["model"], message["session"])
        tables: List[Any] = []
        parts: List[bytes] = []
        offset = 0
        for number, table in enumerate(message["feeds"]):
            feeds, offset = frames.arrays_unpacked(table, body, offset)
            values = session.run(feeds)
            answered, part = frames.arrays_packed(dict(zip(session.output_names, values)))
            tables.append(answered)
            parts.append(part)
            self._pulse(number + 1, len(message["feeds"]))
        return {"ok": {"outputs": tables}}, b"".join(parts)

    def _measure(self, message: Mapping[str, Any], body: bytes) -> Answer:
        import numpy as np

        from .measuring import measured

        feeds, _ = frames.arrays_unpacked(message["feeds"], body)
        end_to_end = message["timing"]["end_to_end"]
        image = None if end_to_end is None else np.load(str(self._path(end_to_end["image"])), allow_pickle=False)
        self._session = None
        models = {name: self._path(file) for name, file in message["models"].items()}
        found = measured(
            models,
            feeds,
            message["session"],
            message["timing"],
            image=image,
            # new ones: their counters tell what happened during this measurement
            sensors=Sensors(),
            pulse=self._pulse,
        )
        return {"ok": found}, b""

    def _cold(self, message: Mapping[str, Any], body: bytes) -> Answer:
        from .measuring import cold

        feeds, _ = frames.arrays_unpacked(message["feeds"], body)
        folder = self._kept_work().folder
        program = folder / "cold.py"
        program.write_text(_source_of("cold"), encoding="utf-8")
        found = cold(
            program,
            self._python,
            self._path(message["model"]),
            feeds,
            message["session"],
            repeats=int(message["repeats"]),
            folder=folder,
            pulse=self._pulse,
        )
        return {"ok": {"runs": found}}, b""

    def _placement(self, message: Mapping[str, Any], body: bytes) -> Answer:
        from .sessions import chosen_cores, node_placements, pinned

        feeds, _ = frames.arrays_unpacked(message["feeds"], body)
        runs = int(message["runs"])
        with pinned(chosen_cores(message["session"])):
            nodes = node_placements(
                self._path(message["model"]),
                feeds,
                message["session"],
                runs=runs,
                folder=self._kept_work().folder,
                pulse=lambda: self._pulse(0, runs),
            )
        return {"ok": {"nodes": nodes}}, b""

    def _opened(self, name: str, settings: Mapping[str, Any]) -> Any:
        """The session of a model; the last one is kept, since many requests follow each other for the same."""
        from .sessions import opened

        key = (name, sorted((key, str(value)) for key, value in settings.items()))
        if self._session is None or self._session[0] != key:
            self._session = None  # freed before the next one takes its memory
            self._session = (key, opened(self._path(name), settings))
        return self._session[1]

    def _path(self, name: str) -> Any:
        path = self._kept_work().path(name)
        if not path.is_file():
            raise ValueError(f"'{name}' was not put there")
        return path

    def _pulse(self, done: int, planned: int) -> None:
        now = time.monotonic()
        if now - self._told >= _PULSE_SECONDS:
            self._told = now
            frames.write(self._out, {"progress": [done, planned]})

    def _kept_work(self) -> Work:
        if self._work is None:
            raise ValueError("there was no hello")
        return self._work

    def _kept_sensors(self) -> Sensors:
        if self._sensors is None:
            raise ValueError("there was no hello")
        return self._sensors


def runtime() -> Dict[str, Any]:
    """The version of ONNX Runtime, once it is imported."""
    module = sys.modules.get("onnxruntime")
    return {"runtime_version": str(getattr(module, "__version__", ""))}


def _python() -> Dict[str, Any]:
    return {"python": platform.python_version()}


def _source_of(name: str) -> str:
    """The text of one of our files, wherever it was imported from."""
    spec = importlib.util.find_spec(f"{__package__}.{name}")
    loader: Any = spec.loader if spec is not None else None
    return str(loader.get_source(f"{__package__}.{name}"))
