"""What Linux tells about a processor under /proc and /sys; None for what it does not."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

__all__ = [
    "cgroup_limits",
    "cpu_clocks_mhz",
    "cpu_details",
    "features_of",
    "governor",
    "max_clock_khz",
    "temperatures_c",
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


def cpu_details(root: Path = Path("/")) -> dict[str, Any]:
    """Model name, vendor, features of interest and whether there is an 8-bit dot product."""
    fields = _cpuinfo(_text(root / "proc/cpuinfo") or "")
    flags = fields.get("flags") or fields.get("Features")
    board = _text(root / "proc/device-tree/model")
    features = features_of(flags) if flags else None
    return {
        "model": fields.get("model name") or (board or "").rstrip("\0") or platform.processor() or None,
        "vendor": fields.get("vendor_id") or fields.get("CPU implementer"),
        "microcode": fields.get("microcode"),
        "features": features,
        "has_vnni": None if features is None else any(name in features for name in _DOT_PRODUCT),
        "has_dotprod": None if features is None else "asimddp" in features,
    }


def features_of(flags: str) -> list[str]:
    """The instruction sets that matter to int8 and float kernels, among a processor's flags.

    >>> features_of("fpu avx2 sse avx512_vnni")
    ['avx2', 'avx512_vnni']
    """
    present = set(flags.split())
    return [name for name in FEATURES if name in present]


def governor(root: Path = Path("/")) -> str | None:
    """The frequency governors in use, joined by a comma where cores differ."""
    files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    found = sorted({text.strip() for file in files if (text := _text(file))})
    return ",".join(found) or None


def cpu_clocks_mhz(root: Path = Path("/")) -> list[float] | None:
    """The clock of every core now, in MHz."""
    files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    clocks = [int(text) / 1000 for file in files if (text := _text(file))]
    if clocks:
        return clocks
    lines = (_text(root / "proc/cpuinfo") or "").splitlines()
    return [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")] or None


def max_clock_khz(core: int, root: Path = Path("/")) -> int:
    """The highest clock of a core in kHz, 0 if not told."""
    text = _text(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq")
    return int(text) if text else 0


def temperatures_c(root: Path = Path("/")) -> dict[str, float] | None:
    """Temperature of each thermal zone in degrees Celsius, by "zone:type"."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, value = _text(zone / "type"), _text(zone / "temp")
        if value and value.strip().lstrip("-").isdigit():
            found[f"{zone.name}:{(kind or 'unknown').strip()}"] = int(value) / 1000
    return found or None


def cgroup_limits(root: Path = Path("/")) -> dict[str, float | int | None] | None:
    """The container's limits: processors and bytes of memory; None for no limit, or not told."""
    base = root / "sys/fs/cgroup"
    cpus, memory = _cgroup_v2(base) if (base / "cgroup.controllers").exists() else _cgroup_v1(base)
    return None if cpus is None and memory is None else {"cpus": cpus, "memory_bytes": memory}


def _cgroup_v2(base: Path) -> tuple[float | None, int | None]:
    quota, _, period = (_text(base / "cpu.max") or "max").strip().partition(" ")
    memory = (_text(base / "memory.max") or "max").strip()
    cpus = int(quota) / int(period or 100_000) if quota.isdigit() else None
    return cpus, int(memory) if memory.isdigit() else None


def _cgroup_v1(base: Path) -> tuple[float | None, int | None]:
    quota = int(_text(base / "cpu/cpu.cfs_quota_us") or -1)
    period = int(_text(base / "cpu/cpu.cfs_period_us") or 100_000)
    memory = int(_text(base / "memory/memory.limit_in_bytes") or _UNLIMITED_BYTES)
    return (quota / period if quota > 0 else None), (memory if memory < _UNLIMITED_BYTES else None)


def _cpuinfo(text: str) -> dict[str, str]:
    """The fields of the first processor listed."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:  # absent, or some sensors refuse the read itself
        return None
