"""A device's state at one moment: clocks, temperatures, what holds it back, memory, power; None where not told.

Raspberry Pi firmware tells through `vcgencmd`, NVIDIA Jetson through `nvpmodel`, `tegrastats` and power monitors under
/sys, x86 through counters of thermal throttling and of energy. Everything is only read; nothing is set.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from .processor import board, cpu_clocks_mhz, governor, temperatures_c, text_of

__all__ = ["Sensors", "held_back_words", "output_of"]

Command = Callable[[Sequence[str]], Optional[str]]

# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled: bits 0 to 3 now, 16 to 19 since boot
_HELD_BACK = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
_SINCE_BOOT_SHIFT = 16
_COMMAND_SECONDS = 5.0
_ENDLESS_SECONDS = 0.8
"""For `tegrastats`, which prints a line every so often until it is stopped."""
_BOARD_RAILS = ("VDD_IN", "POM_5V_IN")
"""Names that Jetson boards give to the rail that feeds all others."""


def output_of(command: Sequence[str]) -> Optional[str]:
    """What a command prints; None if it is not there, fails or takes too long. One that never ends is cut off."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_ENDLESS_SECONDS if command[0] == "tegrastats" else _COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(errors="replace") or None
    except OSError:
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def held_back_words(bits: int) -> Tuple[List[str], List[str]]:
    """What Raspberry Pi's throttling bits mean: now, and at any time since boot.

    >>> held_back_words(0x50005)
    (['under-voltage', 'throttled'], ['under-voltage', 'throttled'])
    """
    now = [word for bit, word in enumerate(_HELD_BACK) if bits >> bit & 1]
    return now, [word for bit, word in enumerate(_HELD_BACK) if bits >> (bit + _SINCE_BOOT_SHIFT) & 1]


class Sensors:
    """What is read; counters mean what they grew since this was made.

    Args:
        root: where /proc and /sys are.
        command: runs a command and gives what it printed, None if it is not there.
    """

    def __init__(self, root: Path = Path("/"), command: Command = output_of) -> None:
        self._root, self._command = root, command
        # asked once: a command that is not there is looked for in every folder of PATH
        self._has_vcgencmd = command(["vcgencmd", "get_throttled"]) is not None
        self._counts = self._throttle_counts()
        self._energy_files = self._energy_counters()
        self._energy_last = [_number(file) for file in self._energy_files]
        self._energy_j = 0.0
        self._rail = self._board_rail()
        self._tegrastats = self._rail is None and self._tegra_power() is not None

    @property
    def energy_source(self) -> Optional[str]:
        """Where power or energy comes from, in words; None where nothing tells."""
        if self._energy_files:
            return "RAPL counters of the processor packages"
        if self._rail is not None:
            return f"power monitor of the rail {self._rail[0]}"
        return "tegrastats" if self._tegrastats else None

    def reading(self, at_ms: float) -> Dict[str, Any]:
        """The state now, as a `Reading`.

        Args:
            at_ms: when, as the caller counts.
        """
        return {
            "at_ms": at_ms,
            "clocks_mhz": cpu_clocks_mhz(self._root) or self._pi_clock(),
            "temperatures_c": temperatures_c(self._root) or self._pi_temperature(),
            "throttled": self.throttled(),
            "memory_bytes": self._resident(),
            "power_w": self._power_w(),
            "energy_j": self._energy(),
        }

    def throttled(self) -> Optional[List[str]]:
        """What holds the device back now, in words; empty for nothing, None where nothing tells."""
        words: List[str] = []
        bits = self._pi_bits()
        if bits is not None:
            words += held_back_words(bits)[0]
        counts = self._throttle_counts()
        words += [f"{name} counted" for name in sorted(counts) if counts[name] > self._counts.get(name, 0)]
        cooling = self._cooling()
        words += [f"slowed by cooling device {name}" for name, state in (cooling or {}).items() if state > 0]
        told = bits is not None or counts or cooling is not None
        return words if told else None

    def details(self) -> Dict[str, Any]:
        """What does not change from one second to the next: board, governor, power mode, what happened since boot."""
        bits = self._pi_bits()
        mode = self._command(["nvpmodel", "-q"])
        lines = (self._tegra_line() or "").splitlines()
        return {
            "board": board(self._root),
            "governor": governor(self._root),
            "clocks_mhz": cpu_clocks_mhz(self._root) or self._pi_clock(),
            "temperatures_c": temperatures_c(self._root) or self._pi_temperature(),
            "throttled": self.throttled(),
            "throttled_since_boot": None if bits is None else held_back_words(bits)[1],
            "power_mode": " ".join(mode.split()) if mode else None,
            "tegrastats": lines[0] if lines else None,
            "energy_source": self.energy_source,
        }

    def _pi_bits(self) -> Optional[int]:
        text = self._command(["vcgencmd", "get_throttled"]) if self._has_vcgencmd else None
        found = re.search(r"throttled=(0x[0-9a-fA-F]+)", text or "")
        return int(found.group(1), 16) if found else None

    def _pi_temperature(self) -> Optional[Dict[str, float]]:
        text = self._command(["vcgencmd", "measure_temp"]) if self._has_vcgencmd else None
        found = re.search(r"temp=([0-9.]+)", text or "")
        return {"vcgencmd": float(found.group(1))} if found else None

    def _pi_clock(self) -> Optional[List[float]]:
        text = self._command(["vcgencmd", "measure_clock", "arm"]) if self._has_vcgencmd else None
        found = re.search(r"=([0-9]+)\s*$", text or "")
        return [int(found.group(1)) / 1e6] if found else None

    def _throttle_counts(self) -> Dict[str, int]:
        """Events counted so far: x86's thermal throttling by core and package, Jetson's over-current by monitor."""
        found: Dict[str, int] = {}
        system = self._root / "sys/devices/system/cpu"
        for file in system.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"):
            kind = "thermal throttling of a " + file.name.replace("_throttle_count", "")
            found[kind] = found.get(kind, 0) + (_number(file) or 0)
        for file in (self._root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"):
            kind = "over-current " + file.name.replace("_event_cnt", "")
            found[kind] = found.get(kind, 0) + (_number(file) or 0)
        return found

    def _cooling(self) -> Optional[Dict[str, int]]:
        """State of each cooling device that works by slowing the processor down; fans are none of them."""
        found = {}
        for device in sorted((self._root / "sys/class/thermal").glob("cooling_device*")):
            kind = (text_of(device / "type") or "").strip()
            state = _number(device / "cur_state")
            if state is not None and ("cpufreq" in kind or kind == "Processor" or "devfreq" in kind):
                found[f"{kind} {device.name}"] = state
        return found or None

    def _resident(self) -> Optional[int]:
        for line in (text_of(self._root / "proc/self/status") or "").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return None

    def _energy_counters(self) -> List[Path]:
        """The counters of whole packages; those of their parts count the same energy again."""
        zones = sorted((self._root / "sys/class/powercap").glob("intel-rapl:*"))
        files = [zone / "energy_uj" for zone in zones if (text_of(zone / "name") or "").startswith("package")]
        return [file for file in files if _number(file) is not None]

    def _energy(self) -> Optional[float]:
        if not self._energy_files:
            return None
        for index, file in enumerate(self._energy_files):
            now, last = _number(file), self._energy_last[index]
            if now is None or last is None:
                return None
            if now < last:  # it began again at 0
                now_since_last = now + (_number(file.with_name("max_energy_range_uj")) or last) - last
            else:
                now_since_last = now - last
            self._energy_j += now_since_last / 1e6
            self._energy_last[index] = now
        return self._energy_j

    def _board_rail(self) -> Optional[Tuple[str, Path, Path]]:
        """The power monitor's channel of the rail that feeds the board: name, millivolts, milliamperes."""
        for label in sorted((self._root / "sys/class/hwmon").glob("hwmon*/in*_label")):
            name = (text_of(label) or "").strip()
            number = label.name[2:].partition("_")[0]
            volts, amperes = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
            if name in _BOARD_RAILS and _number(volts) is not None and _number(amperes) is not None:
                return name, volts, amperes
        return None

    def _power_w(self) -> Optional[float]:
        if self._rail is not None:
            volts, amperes = _number(self._rail[1]), _number(self._rail[2])
            return None if volts is None or amperes is None else volts * amperes / 1e6
        return self._tegra_power() if self._tegrastats else None

    def _tegra_line(self) -> Optional[str]:
        return self._command(["tegrastats", "--interval", "200"])

    def _tegra_power(self) -> Optional[float]:
        found = re.search(r"(?:VDD_IN|POM_5V_IN) (\d+)(?:mW)?/", self._tegra_line() or "")
        return int(found.group(1)) / 1000 if found else None


def _number(file: Path) -> Optional[int]:
    text = (text_of(file) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None
