"""What `nvidia-smi` tells about a GPU; nothing is set."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["QUERY", "gpu_state", "throttle_words"]

# nvidia-smi's field, what it is here, and whether it is a number
_FIELDS: Mapping[str, tuple[str, bool]] = {
    "name": ("model", False),
    "uuid": ("uuid", False),
    "compute_cap": ("compute_capability", False),
    "driver_version": ("driver", False),
    "clocks.sm": ("clock_mhz", True),
    "clocks.max.sm": ("max_clock_mhz", True),
    "clocks.mem": ("memory_clock_mhz", True),
    "temperature.gpu": ("temperature_c", True),
    "power.draw": ("power_w", True),
    "power.limit": ("power_limit_w", True),
    "memory.total": ("memory_mib", True),
    "memory.used": ("memory_used_mib", True),
    "utilization.gpu": ("utilization_percent", True),
    "persistence_mode": ("persistence_mode", False),
    "clocks_throttle_reasons.active": ("throttle_bits", False),
}
QUERY = ",".join(_FIELDS)
_SECONDS = 20.0
# NVML's nvmlClocksEventReasons; idle, application clocks and display clocks are settings, not throttling
_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def gpu_state(device: int = 0, *, command: Sequence[str] = ("nvidia-smi",)) -> dict[str, Any] | None:
    """Name, compute capability, driver, clocks in MHz, temperature in degrees Celsius, power in watts and memory of a
    GPU now; a value that it does not tell is None. None where there is no nvidia-smi, or no such GPU.

    Args:
        device: number of the GPU.
        command: the program.
    """
    words = [*command, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", f"--id={device}"]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")] if done.stdout.strip() else []
    if done.returncode != 0 or len(values) != len(_FIELDS):
        return None
    return {key: _value(text, number) for (key, number), text in zip(_FIELDS.values(), values, strict=True)}


def throttle_words(state: Mapping[str, Any]) -> list[str] | None:
    """What holds the GPU back now, in words; None where it does not tell.

    >>> throttle_words({"throttle_bits": "0x0000000000000024"})
    ['power cap', 'software thermal slowdown']
    """
    try:
        bits = int(str(state["throttle_bits"]), 16)
    except (KeyError, ValueError):
        return None
    return [word for bit, word in _REASONS.items() if bits & bit]


def _value(text: str, number: bool) -> str | float | None:
    if not text or text.startswith("[") or text == "N/A":
        return None
    if not number:
        return text
    try:
        return float(text)
    except ValueError:
        return None
