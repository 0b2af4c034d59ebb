"""How every benchmark writes what it found: one JSON file with the machine, versions, seed and command beside it."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.devices.cpu import Cpu

__all__ = ["RESULTS", "add_common_options", "machine", "rounded", "versions", "write"]

RESULTS = Path(__file__).parent / "results"

_SCHEMA_VERSION = 1
_PACKAGES = ("edgekd", "torch", "torchao", "onnx", "onnxscript", "onnxruntime", "numpy", "tensorrt", "tensorrt-rtx")
# what decides speed; the rest of the fingerprint would tell whose machine it was
_MACHINE = (
    "model", "vendor", "machine", "system", "features", "has_vnni", "cores_logical", "cores_physical", "cores_allowed",
    "memory_bytes", "governor", "clocks_mhz", "load_average",
)  # fmt: skip


_PLACES = ("--out", "--keep", "--run")  # where files lie: they change no number


def add_common_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Declare what every benchmark takes: where to write, and the seed."""
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")


def machine() -> dict[str, Any]:
    """The processor, without anything that names this one machine."""
    found = Cpu(Cpu.Options()).fingerprint()
    return {key: found.get(key) for key in _MACHINE}


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(out: Path, *, name: str, seed: int, argv: Sequence[str], results: Mapping[str, Any]) -> Path:
    """Write one benchmark's record; gives the path.

    Args:
        out: the JSON file; its folder is made.
        name: of the script, without `.py`.
        seed: of weights and inputs.
        argv: the script's arguments as given; `--out` is left out of the recorded command, since it changes nothing.
        results: the script's own part.
    """
    record = {
        "schema_version": _SCHEMA_VERSION,
        "benchmark": name,
        "command": shlex.join(["python", f"benchmarks/{name}.py", *_without_out(argv)]),
        "seed": seed,
        "machine": machine(),
        "versions": versions(),
        **results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rounded(record), indent=1) + "\n", encoding="utf-8")
    return out


def rounded(value: Any, digits: int = 5) -> Any:
    """Plain values with floats cut to `digits` significant digits: no measurement here knows more."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {str(key): rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    return value


def _without_out(argv: Sequence[str]) -> list[str]:
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in _PLACES:
            next(words, None)
        elif not word.startswith(tuple(f"{place}=" for place in _PLACES)):
            kept.append(word)
    return kept
