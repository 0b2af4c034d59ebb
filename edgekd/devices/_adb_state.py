"""What an Android phone tells about itself: processor, clocks, temperatures, what holds it back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.devices._adb_link import AdbLink
from edgekd.devices._linux import features_of
from edgekd.devices._place import Reading

__all__ = ["Phone", "phone_of", "reading_of", "thermal_words"]

# Android's PowerManager.THERMAL_STATUS_*, from 1 on
_STATUS = ("light", "moderate", "severe", "critical", "emergency", "shutdown")
_TEMPERATURE = re.compile(r"Temperature\{mValue=([-\d.]+), mType=(-?\d+), mName=([^,}]+), mStatus=\d+\}")
_PROPERTIES = {
    "manufacturer": "ro.product.manufacturer",
    "model": "ro.product.model",
    "soc": "ro.soc.model",
    "platform": "ro.board.platform",
    "abi": "ro.product.cpu.abi",
    "android": "ro.build.version.release",
    "api_level": "ro.build.version.sdk",
    "build": "ro.build.display.id",
}
_CORES = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq"
# fixed texts: nothing of a user is in them; grep writes the file's name before each value
_ABOUT = f"""
getprop
echo '#uname'; uname -m; uname -r
echo '#nproc'; nproc
echo '#memory'; grep MemTotal /proc/meminfo
echo '#features'; grep -m 1 Features /proc/cpuinfo
echo '#clocks'; grep . {_CORES}/cpuinfo_max_freq {_CORES}/scaling_max_freq {_CORES}/scaling_governor 2>/dev/null
echo '#saver'; settings get global low_power 2>/dev/null
true"""
_NOW = f"""
echo '#clocks'; grep . {_CORES}/scaling_cur_freq {_CORES}/scaling_max_freq 2>/dev/null
echo '#thermal'; dumpsys thermalservice 2>/dev/null
echo '#battery'; dumpsys battery 2>/dev/null
echo '#saver'; settings get global low_power 2>/dev/null
true"""


@dataclass(frozen=True)
class Phone:
    """What does not change while a phone is connected.

    Args:
        machine: of its kernel, "aarch64".
        abi: what programs for it are built for, "arm64-v8a".
        system: "Android 15".
        cores: that it has.
        memory_bytes: of the phone.
        top_khz: highest clock by core, as the processor has it.
        ceiling_khz: highest clock by core that was allowed when the connection was opened.
        details: everything else, for the report.
    """

    machine: str
    abi: str
    system: str
    cores: int | None
    memory_bytes: int | None
    top_khz: Mapping[int, int]
    ceiling_khz: Mapping[int, int]
    details: Mapping[str, Any]

    def fastest(self, threads: int) -> list[int]:
        """The `threads` cores with the highest clocks; empty where the phone tells no clocks."""
        order = sorted(self.top_khz, key=lambda core: (-self.top_khz[core], core))
        return sorted(order[:threads])


def phone_of(link: AdbLink) -> Phone:
    """Ask the phone."""
    parts = _parts(link.script(_ABOUT.strip(), check=False).text)
    told = dict(re.findall(r"^\[([^]]+)\]: \[([^]]*)\]", parts[""], re.MULTILINE))
    properties = {name: told.get(key) or None for name, key in _PROPERTIES.items()}
    machine, _, kernel = (parts.get("uname", "").strip() or "unknown\n").partition("\n")
    top, ceiling = (_by_core(parts.get("clocks", ""), file) for file in ("cpuinfo_max_freq", "scaling_max_freq"))
    flags = parts.get("features", "").partition(":")[2]
    return Phone(
        machine=machine.strip(),
        abi=properties["abi"] or "unknown",
        system=f"Android {properties['android'] or 'of unknown release'}",
        cores=_number(parts.get("nproc", "")),
        memory_bytes=(kilobytes * 1024 if (kilobytes := _number(parts.get("memory", ""))) else None),
        top_khz=top,
        ceiling_khz=ceiling,
        details={
            **properties,
            "kernel": kernel.strip() or None,
            "features": features_of(flags) if flags else None,
            "governor": ",".join(sorted(set(_texts(parts.get("clocks", ""), "scaling_governor")))) or None,
            "max_clocks_mhz": [top[core] / 1000 for core in sorted(top)] or None,
            "allowed_clocks_mhz": [ceiling[core] / 1000 for core in sorted(ceiling)] or None,
            "battery_saver": parts.get("saver", "").strip() == "1",
        },
    )


def reading_of(link: AdbLink, phone: Phone, at_ms: float) -> Reading:
    """The phone's state now."""
    parts = _parts(link.script(_NOW.strip(), check=False).text)
    clocks = _by_core(parts.get("clocks", ""), "scaling_cur_freq")
    temperatures = _temperatures(parts.get("thermal", ""))
    battery = re.search(r"^\s*temperature: (-?\d+)", parts.get("battery", ""), re.MULTILINE)
    if battery:
        temperatures["battery"] = int(battery[1]) / 10.0
    throttled = thermal_words(parts.get("thermal", ""))
    if throttled is not None:
        now = _by_core(parts.get("clocks", ""), "scaling_max_freq")
        capped = sorted(core for core, khz in now.items() if khz < phone.ceiling_khz.get(core, 0))
        throttled += [f"frequency capped on core {core}" for core in capped]
        throttled += ["battery saver"] if parts.get("saver", "").strip() == "1" else []
    return Reading(
        at_ms=at_ms,
        clocks_mhz=[clocks[core] / 1000 for core in sorted(clocks)] or None,
        temperatures_c=temperatures or None,
        throttled=throttled,
    )


def thermal_words(dump: str) -> list[str] | None:
    """What `dumpsys thermalservice` says is held back; None where there is no such service (before Android 10).

    >>> thermal_words("Thermal Status: 2")
    ['thermal status moderate']
    """
    found = re.search(r"Thermal Status: (\d+)", dump)
    if found is None:
        return None
    status = int(found[1])
    return [f"thermal status {_STATUS[min(status, len(_STATUS)) - 1]}"] if status else []


def _temperatures(dump: str) -> dict[str, float]:
    """Degrees Celsius by sensor; what the hardware says now where it is told, else what is cached."""
    _, _, current = dump.partition("Current temperatures from HAL:")
    rows = _TEMPERATURE.findall(current) or _TEMPERATURE.findall(dump)
    # types 6 to 8 are the battery's voltage, current and charge, in the same list
    return {name.strip(): float(value) for value, kind, name in rows if int(kind) not in (6, 7, 8)}


def _parts(text: str) -> dict[str, str]:
    """The answer by the '#name' lines that the fixed texts print; "" for what stands before the first."""
    pieces = re.split(r"^#(\w+)\s*$", text.replace("\r", ""), flags=re.MULTILINE)
    return {"": pieces[0], **dict(zip(pieces[1::2], pieces[2::2], strict=True))}


def _by_core(text: str, file: str) -> dict[int, int]:
    return {int(core): int(value) for core, value in re.findall(rf"/cpu(\d+)/cpufreq/{file}:(\d+)", text)}


def _texts(text: str, file: str) -> list[str]:
    return re.findall(rf"/cpufreq/{file}:(\S+)", text)


def _number(text: str) -> int | None:
    found = re.search(r"\d+", text)
    return int(found[0]) if found else None
