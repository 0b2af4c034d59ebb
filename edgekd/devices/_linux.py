"""What Linux tells about a processor under /proc and /sys; the program on a device reads it the same way."""

from __future__ import annotations

from edgekd.agent.processor import (
    cgroup_limits,
    cpu_clocks_mhz,
    cpu_details,
    features_of,
    governor,
    max_clock_khz,
    temperatures_c,
)

__all__ = [
    "cgroup_limits",
    "cpu_clocks_mhz",
    "cpu_details",
    "features_of",
    "governor",
    "max_clock_khz",
    "temperatures_c",
]
