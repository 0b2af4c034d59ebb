"""What Linux tells about a processor and a board under /proc and /sys; None for what it does not."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

__all__ = [
    "allowed_cores",
    "board",
    "cgroup_limits",
    "cpu_clocks_mhz",
    "cpu_details",
    "features_of",
    "governor",
    "is_emulated",
    "max_clock_khz",
    "memory_bytes",
    "temperatures_c",
    "text_of",
]

FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "avx_vnni_int8",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
_DOT_PRODUCT = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")
_UNLIMITED_BYTES = 2**60  # cgroup v1 writes a number near 2**63 for "no limit"
_X86 = ("x86_64", "amd64", "i386", "i686")
_X86_VENDORS = ("GenuineIntel", "AuthenticAMD")
_ROOT = Path("/")


def cpu_details(root: Path = _ROOT) -> Dict[str, Any]:
    """Model name, vendor, features of interest and whether there is an 8-bit dot product."""
    fields = _cpuinfo(text_of(root / "proc/cpuinfo") or "")
    flags = fields.get("flags") or fields.get("Features")
    features = features_of(flags) if flags else None
    return {
        "model": fields.get("model name") or board(root) or platform.processor() or None,
        "vendor": fields.get("vendor_id") or fields.get("CPU implementer"),
        "microcode": fields.get("microcode"),
        "features": features,
        "has_vnni": None if features is None else any(name in features for name in _DOT_PRODUCT),
        "has_dotprod": None if features is None else "asimddp" in features,
    }


def features_of(flags: str) -> List[str]:
    """The instruction sets that matter to int8 and float kernels, among a processor's flags.

    >>> features_of("fpu avx2 sse avx512_vnni")
    ['avx2', 'avx512_vnni']
    """
    present = set(flags.split())
    return [name for name in FEATURES if name in present]


def board(root: Path = _ROOT) -> Optional[str]:
    """The name of the board: "Raspberry Pi 5 Model B Rev 1.0"."""
    return (text_of(root / "proc/device-tree/model") or "").rstrip("\0").strip() or None


def governor(root: Path = _ROOT) -> Optional[str]:
    """The frequency governors in use, joined by a comma where cores differ."""
    files = _by_core(root, "cpufreq/scaling_governor")
    found = sorted({(text_of(file) or "").strip() for file in files} - {""})
    return ",".join(found) or None


def cpu_clocks_mhz(root: Path = _ROOT) -> Optional[List[float]]:
    """The clock of every core now, in MHz."""
    texts = [text_of(file) for file in _by_core(root, "cpufreq/scaling_cur_freq")]
    clocks = [int(text) / 1000 for text in texts if text]
    if clocks:
        return clocks
    lines = (text_of(root / "proc/cpuinfo") or "").splitlines()
    return [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")] or None


def max_clock_khz(core: int, root: Path = _ROOT) -> int:
    """The highest clock of a core in kHz, 0 if not told."""
    text = text_of(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq")
    return int(text) if text else 0


def temperatures_c(root: Path = _ROOT) -> Optional[Dict[str, float]]:
    """Temperature of each thermal zone in degrees Celsius, by "zone:type"."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, value = text_of(zone / "type"), text_of(zone / "temp")
        if value and value.strip().lstrip("-").isdigit():
            found[f"{zone.name}:{(kind or 'unknown').strip()}"] = int(value) / 1000
    return found or None


def is_emulated(machine: str, root: Path = _ROOT) -> bool:
    """Whether another processor than the machine's stands behind this process, as qemu's user mode has it.

    Args:
        machine: what the process is told, "aarch64".
        root: where /proc and /sys are; an emulator hands them through.
    """
    if machine.lower() in _X86:
        return False
    vendor = _cpuinfo(text_of(root / "proc/cpuinfo") or "").get("vendor_id")
    return vendor in _X86_VENDORS or (root / "sys/devices/system/cpu/cpu0/microcode").exists()


def memory_bytes(root: Path = _ROOT) -> Optional[int]:
    """All of the device's memory."""
    for line in (text_of(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def cgroup_limits(root: Path = _ROOT) -> Optional[Dict[str, Union[float, int, None]]]:
    """The container's limits: processors and bytes of memory; None for no limit, or not told."""
    base = root / "sys/fs/cgroup"
    cpus, memory = _cgroup_v2(base) if (base / "cgroup.controllers").exists() else _cgroup_v1(base)
    return None if cpus is None and memory is None else {"cpus": cpus, "memory_bytes": memory}


def allowed_cores() -> Optional[List[int]]:
    """Cores that this process may use, or None where the system does not tell."""
    import os

    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def text_of(file: Path) -> Optional[str]:
    """The content of a small file; None if there is none, or it does not let itself be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:  # absent, or some sensors refuse the read itself
        return None


def _by_core(root: Path, name: str) -> List[Path]:
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/" + name)
    # cpu10 comes after cpu9
    return sorted(files, key=lambda file: int(file.parts[-3][3:]))


def _cgroup_v2(base: Path) -> Tuple[Optional[float], Optional[int]]:
    quota, _, period = (text_of(base / "cpu.max") or "max").strip().partition(" ")
    memory = (text_of(base / "memory.max") or "max").strip()
    cpus = int(quota) / int(period or 100_000) if quota.isdigit() else None
    return cpus, int(memory) if memory.isdigit() else None


def _cgroup_v1(base: Path) -> Tuple[Optional[float], Optional[int]]:
    quota = int(text_of(base / "cpu/cpu.cfs_quota_us") or -1)
    period = int(text_of(base / "cpu/cpu.cfs_period_us") or 100_000)
    memory = int(text_of(base / "memory/memory.limit_in_bytes") or _UNLIMITED_BYTES)
    return (quota / period if quota > 0 else None), (memory if memory < _UNLIMITED_BYTES else None)


def _cpuinfo(text: str) -> Dict[str, str]:
    """The fields of the first processor listed."""
    fields: Dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields
