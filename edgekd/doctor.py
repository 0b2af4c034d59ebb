"""What works on this machine: tried, not just listed."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import edgekd
from edgekd import _installed, _probes
from edgekd._installed import Extra, Package
from edgekd._probes import Engine, Provider, TorchDevice
from edgekd.spec import Frozen

__all__ = ["Diagnosis", "Disk", "Engine", "Extra", "Package", "Provider", "TorchDevice", "diagnose"]

_LOW_DISK_BYTES = 2 * 2**30
_MAIN_PROVIDER = "CPUExecutionProvider"


class Disk(Frozen):
    """Room where runs would be written, in bytes."""

    path: str
    free_bytes: int
    total_bytes: int


class Diagnosis(Frozen):
    """What was found, and what it means.

    Args:
        python: version of the interpreter.
        packages: the required ones, against the versions that edgekd supports.
        providers: execution providers of ONNX Runtime, each after a session was opened and run.
        int8_sums: "exact", or "saturating" where this processor cuts large u8 x s8 sums off; None if not tried.
        torch_devices: where training can compute, each after a sum was computed there.
        tensorrt: the library, after it parsed a model; None if it is not installed.
        cpu: the processor, see `edgekd.devices.cpu`.
        disk: room in the current folder.
        extras: optional parts, with the command that installs each.
        problems: what keeps the main path from working; one sentence each.
        warnings: what works otherwise than one may expect; one sentence each.
    """

    edgekd: str
    python: str
    platform: str
    packages: list[Package]
    providers: list[Provider]
    int8_sums: str | None
    torch_devices: list[TorchDevice]
    tensorrt: Engine | None
    cpu: dict[str, Any]
    disk: Disk
    extras: list[Extra]
    problems: list[str]
    warnings: list[str]

    @property
    def exit_code(self) -> int:
        """0 if the main path works, 4 if something that it needs does not."""
        return 4 if self.problems else 0


def diagnose(folder: Path = Path()) -> Diagnosis:
    """Look at versions, try every backend on a tiny model, and say what is missing.

    Args:
        folder: where runs would be written.
    """
    packages, extras = _installed.packages(), _installed.extras()
    providers = _probes.providers()
    sums = _probes.int8_sums() if any(one.name == _MAIN_PROVIDER and one.works for one in providers) else None
    devices = _probes.torch_devices()
    cpu = _probes.cpu()
    usage = shutil.disk_usage(folder)
    disk = Disk(path=str(folder.resolve()), free_bytes=usage.free, total_bytes=usage.total)
    return Diagnosis(
        edgekd=edgekd.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=packages,
        providers=providers,
        int8_sums=sums,
        torch_devices=devices,
        tensorrt=_probes.tensorrt(),
        cpu=cpu,
        disk=disk,
        extras=extras,
        problems=_problems(packages, providers, devices),
        warnings=_warnings(packages, cpu, sums, disk),
    )


def _problems(packages: list[Package], providers: list[Provider], devices: list[TorchDevice]) -> list[str]:
    found = [
        f"{one.name} {one.installed or 'is not installed'}: edgekd needs {one.name}{one.required}. Run"
        f" `pip install '{one.name}{one.required}'`."
        for one in packages
        if not one.supported
    ]
    main = next((one for one in providers if one.name == _MAIN_PROVIDER), None)
    if main is None or not main.works:
        reason = main.problem if main else "it is not in this build"
        found.append(
            f"ONNX Runtime cannot run a model on the CPU: {reason}. Run `pip install --force-reinstall onnxruntime`."
        )
    cpu = next((one for one in devices if one.name == "cpu"), None)
    if cpu is None or not cpu.works:
        found.append(f"torch cannot compute: {cpu.problem if cpu else 'it is not there'}. Run `pip install torch`.")
    return found


def _warnings(packages: list[Package], cpu: dict[str, Any], sums: str | None, disk: Disk) -> list[str]:
    found = []
    if not packages:
        found.append("edgekd is not installed as a package, so versions were not checked. Run `pip install .`.")
    if sums == "saturating":
        found.append(
            "This processor sums u8 x s8 products in 16 bits, which saturate (it has no VNNI). quantize.reduce_range"
            ' = "auto" scales weights here so that results stay right; int8 is slower than with VNNI.'
        )
    elif sums == "exact" and cpu.get("has_vnni") is False:
        found.append("This processor has no VNNI: int8 is right here, but slower than where there is one.")
    if disk.free_bytes < _LOW_DISK_BYTES:
        found.append(f"Only {disk.free_bytes / 2**30:.1f} GiB are free in {disk.path}. Use --out to write elsewhere.")
    return found
