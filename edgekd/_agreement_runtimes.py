"""The runtimes that can answer for a model file, each opened as a Runner."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekd.catalog import CATALOGS
from edgekd.devices._arm64_userland import EmulatedArm64Runner, userland_folder
from edgekd.errors import BackendMissing, UsageError, did_you_mean
from edgekd.spec import Runner
from edgekd.targets._modelfile import model_inputs, model_outputs, read_model
from edgekd.targets._plain import PlainRunner

__all__ = ["EMULATED", "PLAIN", "Runtime", "runtime_named", "runtime_names"]

PLAIN = "onnxruntime_plain"
"""ONNX Runtime without optimizations: what an ONNX file means."""
EMULATED = "emulated_arm64"


@dataclass(frozen=True)
class Runtime:
    """One way to run files.

    Args:
        name: what it is asked for by.
        suffixes: of the files that it runs.
        open: opens a file on a number of threads.
        absent: why it cannot run here; None if it can.
        version: its version and what it computed for, from an open runner.
        sums_in_16_bits: whether its 8-bit kernels add products in 16 bits on x86 without VNNI.
    """

    name: str
    suffixes: tuple[str, ...]
    open: Callable[[Path, int], Runner]
    absent: Callable[[], str | None]
    version: Callable[[Runner], str]
    sums_in_16_bits: bool = False

    def takes(self, path: Path) -> bool:
        """Whether it runs such files."""
        return path.suffix.lower() in self.suffixes


def runtime_names() -> list[str]:
    """Every runtime, the reference first."""
    return [PLAIN, *CATALOGS["targets"].names(), EMULATED]


def runtime_named(name: str, *, userland: Path | None = None) -> Runtime:
    """A runtime by name.

    Args:
        name: of a target, or one of the two others.
        userland: folder of the arm64 userland; that of the environment unless given.

    Raises:
        UsageError: no such runtime.
    """
    here = platform.machine()
    if name == PLAIN:
        return Runtime(name, (".onnx",), _plain, lambda: None, lambda _: f"{_installed('onnxruntime')} on {here}")
    if name == EMULATED:
        return Runtime(
            name,
            (".onnx",),
            lambda path, threads: _emulated(path, threads, userland),
            lambda: _absent(userland),
            lambda runner: f"onnxruntime {getattr(runner, 'version', '')} on aarch64, emulated",
        )
    if name not in CATALOGS["targets"].names():
        raise UsageError(f"There is no runtime '{name}'. {did_you_mean(name, runtime_names())}")
    target = CATALOGS["targets"].load(name).member()
    made = {"openvino": (".onnx", ".xml"), "tensorrt": (".onnx", ".engine")}
    package = "executorch" if target.suffix == ".pte" else target.runtime
    return Runtime(
        name,
        made.get(target.runtime, (target.suffix,)),
        lambda path, threads: target.runner(path, threads=threads),
        lambda: target.missing() or target.absent_here(),
        lambda _: f"{_installed(package)} on {target.runs_on or here}",
        target.sums_in_16_bits,
    )


def _plain(path: Path, threads: int) -> Runner:
    return PlainRunner(path, threads=threads)


def _emulated(path: Path, threads: int, userland: Path | None) -> Runner:
    model = read_model(path, external_data=False)
    folder = userland_folder(userland)
    return EmulatedArm64Runner(path, model_inputs(model), model_outputs(model), userland=folder, threads=threads)


def _absent(userland: Path | None) -> str | None:
    try:
        userland_folder(userland)
    except BackendMissing as error:
        return str(error)
    return None


def _installed(package: str) -> str:
    names: Mapping[str, tuple[str, ...]] = {"tensorrt": ("tensorrt", "tensorrt-rtx")}
    for name in names.get(package, (package,)):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return package
