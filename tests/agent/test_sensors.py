"""What a device tells, from a made-up /proc, /sys and commands with made-up answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from edgekd.agent.processor import is_emulated, memory_bytes
from edgekd.agent.sensors import Command, Sensors, held_back_words, output_of


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def saying(answers: dict[str, str]) -> Command:
    def command(words: Sequence[str]) -> str | None:
        return answers.get(" ".join(words))

    return command


NOTHING = saying({})


@pytest.mark.parametrize(
    ("bits", "now", "since_boot"),
    [
        (0x0, [], []),
        (0x1, ["under-voltage"], []),
        (0x50000, [], ["under-voltage", "throttled"]),
        (0xF000F, *[["under-voltage", "frequency capped", "throttled", "soft temperature limit"]] * 2),
        (0x20002, ["frequency capped"], ["frequency capped"]),
    ],
)
def test_bits_of_raspberry_pi_mean_words(bits: int, now: list[str], since_boot: list[str]) -> None:
    assert held_back_words(bits) == (now, since_boot)


def test_raspberry_pi_tells_through_its_firmware(tmp_path: Path) -> None:
    command = saying(
        {
            "vcgencmd get_throttled": "throttled=0x80008\n",
            "vcgencmd measure_temp": "temp=81.2'C\n",
            "vcgencmd measure_clock arm": "frequency(0)=1500398464\n",
        }
    )
    sensors = Sensors(write(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B\0"}), command)
    reading = sensors.reading(1.5)
    assert reading["throttled"] == ["soft temperature limit"]
    assert reading["temperatures_c"] == {"vcgencmd": 81.2}
    assert reading["clocks_mhz"] == [1500.398464]
    assert (reading["at_ms"], reading["power_w"], reading["energy_j"]) == (1.5, None, None)
    details = sensors.details()
    assert details["throttled_since_boot"] == ["soft temperature limit"]
    assert details["board"] == "Raspberry Pi 5 Model B"


def test_jetson_tells_its_mode_and_the_power_of_its_board(tmp_path: Path) -> None:
    monitor = "sys/class/hwmon/hwmon3"
    files = {
        f"{monitor}/in1_label": "VDD_IN\n",
        f"{monitor}/in1_input": "5000\n",
        f"{monitor}/curr1_input": "1200\n",
        f"{monitor}/in2_label": "VDD_CPU_GPU_CV\n",
        f"{monitor}/in2_input": "5000\n",
        f"{monitor}/curr2_input": "400\n",
    }
    command = saying({"nvpmodel -q": "NV Power Mode: 15W\n0\n", "tegrastats --interval 200": "RAM 1/2MB\nRAM 1/2MB\n"})
    sensors = Sensors(write(tmp_path, files), command)
    assert sensors.reading(0.0)["power_w"] == 6.0  # 5 V times 1.2 A; the other rail is a part of it
    assert sensors.energy_source == "power monitor of the rail VDD_IN"
    assert sensors.details()["power_mode"] == "NV Power Mode: 15W 0"
    assert sensors.details()["tegrastats"] == "RAM 1/2MB"


def test_tegrastats_gives_the_power_where_no_monitor_can_be_read(tmp_path: Path) -> None:
    line = "RAM 2448/7620MB CPU [1%@729] tj@48C VDD_IN 4800mW/4700mW VDD_SOC 1500mW/1490mW\n"
    sensors = Sensors(tmp_path, saying({"tegrastats --interval 200": line}))
    assert (sensors.reading(0.0)["power_w"], sensors.energy_source) == (4.8, "tegrastats")


def test_x86_is_throttled_when_a_counter_rises(tmp_path: Path) -> None:
    counter = "sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"
    write(tmp_path, {counter.format(0): "7\n", counter.format(1): "3\n"})
    sensors = Sensors(tmp_path, NOTHING)
    assert sensors.throttled() == []
    write(tmp_path, {counter.format(1): "4\n"})
    assert sensors.throttled() == ["thermal throttling of a core counted"]


def test_cooling_by_slowing_down_counts_and_a_fan_does_not(tmp_path: Path) -> None:
    cooling = "sys/class/thermal/cooling_device{}/{}"
    files = {cooling.format(0, "type"): "pwm-fan", cooling.format(0, "cur_state"): "4"}
    sensors = Sensors(write(tmp_path, files), NOTHING)
    assert sensors.throttled() is None
    write(tmp_path, {cooling.format(1, "type"): "cpufreq-cpu0\n", cooling.format(1, "cur_state"): "0\n"})
    assert sensors.throttled() == []
    write(tmp_path, {cooling.format(1, "cur_state"): "2\n"})
    assert sensors.throttled() == ["slowed by cooling device cpufreq-cpu0 cooling_device1"]


def test_energy_grows_by_what_the_packages_count_and_survives_their_end(tmp_path: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:{}/{}"
    files = {
        zone.format("0", "name"): "package-0\n",
        zone.format("0", "energy_uj"): "1000000\n",
        zone.format("0", "max_energy_range_uj"): "5000000\n",
        zone.format("0:0", "name"): "core\n",
        zone.format("0:0", "energy_uj"): "900000\n",
    }
    sensors = Sensors(write(tmp_path, files), NOTHING)
    write(tmp_path, {zone.format("0", "energy_uj"): "3500000\n"})
    assert sensors.reading(0.0)["energy_j"] == pytest.approx(2.5)
    write(tmp_path, {zone.format("0", "energy_uj"): "500000\n"})  # 1.5 J to the end of its range, and 0.5 J on
    assert sensors.reading(0.0)["energy_j"] == pytest.approx(4.5)
    assert sensors.energy_source == "RAPL counters of the processor packages"


def test_nothing_is_told_where_there_is_nothing(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path, NOTHING)
    assert set(sensors.reading(2.0).values()) == {2.0, None}
    assert set(sensors.details().values()) == {None}
    assert memory_bytes(tmp_path) is None


def test_garbage_in_a_sensor_is_nothing(tmp_path: Path) -> None:
    command = saying({"vcgencmd get_throttled": "error=1 VCHI initialization failed\n"})
    files = {"sys/class/thermal/thermal_zone0/temp": "broken\n", "proc/meminfo": "MemTotal: 8 kB\n"}
    sensors = Sensors(write(tmp_path, files), command)
    assert (sensors.throttled(), sensors.reading(0.0)["temperatures_c"]) == (None, None)
    assert memory_bytes(tmp_path) == 8192


def test_commands_that_are_not_there_fail_or_never_end_give_what_they_gave() -> None:
    assert output_of(["edgekd-no-such-command"]) is None
    assert output_of(["false"]) is None
    assert output_of(["echo", "hello"]) == "hello\n"


@pytest.mark.parametrize(
    ("machine", "vendor", "emulated"),
    [("x86_64", "GenuineIntel", False), ("aarch64", "AuthenticAMD", True), ("aarch64", None, False)],
)
def test_emulation_shows_in_the_processor_below(
    tmp_path: Path, machine: str, vendor: str | None, emulated: bool
) -> None:
    text = f"vendor_id\t: {vendor}\n" if vendor else "CPU implementer\t: 0x41\n"
    assert is_emulated(machine, write(tmp_path, {"proc/cpuinfo": text})) is emulated
