"""A virtual environment for each peer, made once and kept in a cache folder.

Peers pin what edgekd does not want and the other way round, so none is installed beside edgekd. `torch` is
installed first and at a version whose build on the usual index for this platform may be the processor's one;
asked for without a version, newer releases bring gigabytes of CUDA packages.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ENVIRONMENTS", "Environment", "NotInstalled", "cache_folder", "python_of"]

_TORCH = "torch==2.13.0"
_INSTALL_SECONDS = 1800
_ERROR_LINES = 5


class NotInstalled(Exception):
    """A peer that does not install here; says what its installer said."""


@dataclass(frozen=True)
class Environment:
    """What is installed for one peer.

    Args:
        first: installed on its own before the rest, so that nothing else chooses its version.
        packages: the peer and what it needs, as pip takes them.
    """

    packages: Sequence[str]
    first: Sequence[str] = ()

    @property
    def key(self) -> str:
        """Changes when anything that is installed, or the interpreter, changes."""
        content = json.dumps([list(self.first), list(self.packages), sys.version_info[:2]])
        return hashlib.sha256(content.encode()).hexdigest()[:8]


ENVIRONMENTS: Mapping[str, Environment] = {
    "onnxruntime": Environment(packages=("onnxruntime==1.31.1", "onnx==1.23.2", "sympy")),
    "nncf": Environment(
        first=(_TORCH,),
        # torchao it imports and does not declare; the last two for the student's definition and weights
        packages=(
            "nncf==3.4.0",
            "torchao==0.18.0",
            "onnx==1.23.2",
            "onnxruntime==1.31.1",
            "onnxscript==0.7.2",
            "pydantic",
            "safetensors",
        ),
    ),
    # the ONNX part of Intel Neural Compressor has been a package of its own since 3.0
    "neural_compressor": Environment(
        # prettytable and scipy it imports and does not declare
        packages=("onnx-neural-compressor==1.0", "prettytable", "scipy", "onnx==1.23.2", "onnxruntime==1.31.1")
    ),
    # its `onnx` extra without the CUDA packages, which are not needed to calibrate on a processor
    "modelopt": Environment(
        first=(_TORCH,),
        packages=(
            "nvidia-modelopt==0.47.0",
            "onnx~=1.21.0",
            "onnxruntime~=1.24.2",
            "onnx-graphsurgeon>=0.6.1",
            "onnxconverter-common~=1.16.0",
            "onnxslim>=0.1.76",
            "polygraphy>=0.53.4",
            "onnxscript",
            "cppimport",
            "ml_dtypes",
            "lief",
        ),
    ),
}


def cache_folder() -> Path:
    """Where environments and photographs are kept unless the command says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgekd-benchmarks"


def python_of(name: str, folder: Path, *, recreate: bool) -> Path:
    """The interpreter of a peer's environment, which is made when it is not there yet.

    Args:
        name: a key of `ENVIRONMENTS`.
        folder: holds one folder for each environment.
        recreate: make it anew.

    Raises:
        NotInstalled: pip could not install it; with the end of what pip said.
    """
    wanted = ENVIRONMENTS[name]
    root = folder / f"{name}-{wanted.key}"
    python, done = root / "bin" / "python", root / "installed"
    if done.exists() and not recreate:
        return python
    shutil.rmtree(root, ignore_errors=True)
    print(f"environment {name}: installing {', '.join(wanted.packages)}", file=sys.stderr)
    venv.create(root, with_pip=True)
    for packages in (wanted.first, wanted.packages):
        if packages:
            _install(python, packages)
    done.touch()  # last: an environment that was broken off is made again
    return python


def _install(python: Path, packages: Sequence[str]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"pip did not finish within {_INSTALL_SECONDS} s: {', '.join(packages)}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise NotInstalled(" ".join(said[-_ERROR_LINES:]) or f"pip ended with {done.returncode}")
