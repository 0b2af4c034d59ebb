"""64-bit Arm on an x86 machine: ONNX Runtime's Arm build under qemu's user-mode emulation.

It gives the answers of Arm's kernels, and says nothing about their speed. The folder with the emulator, the Arm
libraries and the Arm packages is made once, see `benchmarks/arm64_userland.sh`; nothing is installed here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from edgekd.errors import BackendMissing, MismatchError, ModelFileError
from edgekd.spec import TensorSpec

__all__ = ["USERLAND", "EmulatedArm64Runner", "userland_command", "userland_environment", "userland_folder"]

USERLAND = "EDGEKD_ARM64_USERLAND"
"""The environment variable that names the folder."""

_EMULATOR = "qemu-aarch64-static"
_PYTHON = "root/usr/bin/python3.11"
_SCRIPT = Path(__file__).with_name("_arm64_run.py")
_SCRIPT_NAME = "benchmarks/arm64_userland.sh"
_LIMIT_SECONDS = 1800.0
"""Of one run: a batch of large images takes minutes under emulation."""


def userland_folder(given: Path | None = None) -> Path:
    """The folder of the arm64 userland: the one given, or that of the environment variable.

    Raises:
        BackendMissing: there is none, or it is not whole; says how to make one.
    """
    named = given or (Path(os.environ[USERLAND]) if os.environ.get(USERLAND) else None)
    make = f"Make one with `sh {_SCRIPT_NAME} FOLDER` and set {USERLAND}=FOLDER."
    if named is None:
        raise BackendMissing(f"emulated_arm64 needs an arm64 userland, and {USERLAND} is not set. {make}")
    folder = named.resolve()
    for part in (_PYTHON, "site-packages/onnxruntime"):
        # python3.11 may be a link that points to a place inside the emulated root
        if not os.path.lexists(folder / part):
            raise BackendMissing(f"emulated_arm64: {folder} is no arm64 userland: it has no {part}. {make}")
    _emulator(folder)
    return folder


def userland_command(folder: Path) -> list[str]:
    """What starts the emulated Python; arguments for it may follow."""
    # -s and -P: neither the user's packages nor the current folder, both of which are for another processor
    return [_emulator(folder), "-L", str(folder / "root"), str(folder / _PYTHON), "-s", "-P"]


def userland_environment(folder: Path) -> dict[str, str]:
    """The environment of the emulated Python; it has nothing of this process's but the temporary folder."""
    return {
        "PYTHONPATH": str(folder / "site-packages"),
        "PATH": os.environ.get("PATH", ""),
        "TMPDIR": tempfile.gettempdir(),
    }


class EmulatedArm64Runner:
    """Run an ONNX file with ONNX Runtime's Arm build in an emulated process of its own.

    Args:
        path: the file; check one from elsewhere first, the process opens what it names.
        inputs: what the model takes.
        outputs: what it gives.
        userland: from `userland_folder`.
        threads: intra-op threads, >= 1.

    Raises:
        ModelFileError: the Arm build refuses the model.
        BackendMissing: the emulation does not start.
    """

    def __init__(
        self, path: Path, inputs: list[TensorSpec], outputs: list[TensorSpec], *, userland: Path, threads: int = 1
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.provider_requested = "CPUExecutionProvider"
        self._path = path
        self._folder = tempfile.TemporaryDirectory(prefix="edgekd-arm64-")
        self._errors: IO[bytes] = (Path(self._folder.name) / "stderr").open("w+b")
        self._process = self._started(userland, threads)
        about = self._read()
        if "error" in about:
            self.close()
            raise ModelFileError(f"{path}: ONNX Runtime on arm64 refuses the model: {_line(about['error'])}.")
        self.version: str = about["version"]
        self.provider_used: str = about["provider"]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; keys are input names, the result's keys are output names.

        Raises:
            MismatchError: the feeds do not fit the model's inputs.
            BackendMissing: the emulated process died.
        """
        taken, given = Path(self._folder.name) / "feeds.npz", Path(self._folder.name) / "out.npz"
        np.savez(taken, **feeds)  # type: ignore[arg-type]  # the stub takes the names for its own keywords
        answer = self._ask({"feeds": str(taken), "out": str(given)})
        if "error" in answer:
            wanted = ", ".join(f"'{spec.name}' {spec.dtype} {spec.shape}" for spec in self.inputs)
            raise MismatchError(f"{self._path}: {_line(answer['error'])}. The model takes {wanted}.")
        with np.load(given, allow_pickle=False) as values:
            return {spec.name: values[f"output{index}"] for index, spec in enumerate(self.outputs)}

    def close(self) -> None:
        """End the process; a second call does nothing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self, userland: Path, threads: int) -> subprocess.Popen[bytes]:
        environment = {**userland_environment(userland), "OMP_NUM_THREADS": str(threads)}
        command = userland_command(userland)
        try:
            return subprocess.Popen(
                [*command, str(_SCRIPT), str(self._path.resolve()), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
            )
        except OSError as error:
            self._folder.cleanup()
            raise BackendMissing(f"emulated_arm64 does not start: {error}.") from error

    def _ask(self, request: Mapping[str, str]) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdin.closed:
            raise RuntimeError(f"runner of {self._path} is closed")
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._read()  # which finds out what happened
        return self._read()

    def _read(self) -> dict[str, Any]:
        """The process's next line; a process that says nothing for too long is ended."""
        if self._process.stdout is None:
            raise RuntimeError("the process was started with a pipe")
        watch = Timer(_LIMIT_SECONDS, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        raise BackendMissing(
            f"emulated_arm64 ended with code {code} and gave no answer: {said[-1] if said else 'nothing was said'}."
            f" Make its folder again with {_SCRIPT_NAME}."
        )


def _emulator(folder: Path) -> str:
    own = folder / "qemu" / _EMULATOR
    found = str(own) if own.is_file() else shutil.which(_EMULATOR)
    if found is None:
        raise BackendMissing(f"emulated_arm64 needs {_EMULATOR}: not in {folder}/qemu and not installed.")
    return found


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
