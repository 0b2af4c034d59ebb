"""The processor: what it tells, from a made-up /proc and /sys, and pinning on the real one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edgekd.devices._linux import (
    cgroup_limits,
    cpu_clocks_mhz,
    cpu_details,
    governor,
    max_clock_khz,
    temperatures_c,
)
from edgekd.devices.cpu import Cpu
from edgekd.errors import UsageError
from edgekd.spec import Options

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Fast CPU\ncpu MHz\t\t: 2500.5\nflags\t: fpu {flags}\n\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\n"

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("flags", "features", "vnni"),
    [
        ("sse avx2", ["avx2"], False),
        ("avx2 avx512f avx512_vnni", ["avx2", "avx512f", "avx512_vnni"], True),
        ("avx2 avx_vnni", ["avx2", "avx_vnni"], True),
        ("avx512f amx_int8", ["avx512f", "amx_int8"], True),
    ],
)
def test_vnni_is_told_when_a_flag_has_it(tmp_path: Path, flags: str, features: list[str], vnni: bool) -> None:
    details = cpu_details(write(tmp_path, {"proc/cpuinfo": X86.format(flags=flags)}))
    assert (details["features"], details["has_vnni"]) == (features, vnni)
    assert (details["model"], details["vendor"]) == ("Fast CPU", "GenuineIntel")


def test_board_and_dot_product_are_told_when_the_processor_is_arm(tmp_path: Path) -> None:
    details = cpu_details(write(tmp_path, {"proc/cpuinfo": ARM, "proc/device-tree/model": "Raspberry Pi 5\0"}))
    assert (details["model"], details["has_dotprod"], details["has_vnni"]) == ("Raspberry Pi 5", True, False)


def test_values_are_none_when_the_system_tells_nothing(tmp_path: Path) -> None:
    details = cpu_details(tmp_path)
    assert (details["features"], details["has_vnni"]) == (None, None)
    assert governor(tmp_path) is None
    assert cpu_clocks_mhz(tmp_path) is None
    assert temperatures_c(tmp_path) is None
    assert cgroup_limits(tmp_path) is None
    assert max_clock_khz(0, tmp_path) == 0


def test_clocks_governor_and_temperature_are_read_when_there(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    root = write(
        tmp_path,
        {
            f"{cpu}/cpu0/cpufreq/scaling_governor": "performance\n",
            f"{cpu}/cpu1/cpufreq/scaling_governor": "powersave\n",
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
            f"{cpu}/cpu1/cpufreq/cpuinfo_max_freq": "2400000\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
        },
    )
    assert governor(root) == "performance,powersave"
    assert cpu_clocks_mhz(root) == [1800.0]
    assert max_clock_khz(1, root) == 2_400_000
    assert temperatures_c(root) == {"thermal_zone0:cpu-thermal": 48.312}


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({"cgroup.controllers": "cpu", "cpu.max": "150000 100000\n", "memory.max": "1048576\n"}, (1.5, 1048576)),
        ({"cgroup.controllers": "cpu", "cpu.max": "max 100000\n", "memory.max": "2048\n"}, (None, 2048)),
        (
            {
                "cpu/cpu.cfs_quota_us": "200000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            (2.0, None),
        ),
    ],
    ids=["v2", "v2-memory-only", "v1"],
)
def test_container_limits_are_read(tmp_path: Path, files: dict[str, str], limits: tuple[float, int]) -> None:
    root = write(tmp_path, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert cgroup_limits(root) == {"cpus": limits[0], "memory_bytes": limits[1]}


@linux
def test_every_thread_is_pinned_and_freed_when_the_context_ends() -> None:
    before = os.sched_getaffinity(0)
    started, stop = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        stop.wait()

    other = threading.Thread(target=wait)
    other.start()
    started.wait()
    assert other.native_id is not None
    try:
        with Cpu(Options()).pinned(1) as cores:
            assert len(cores) == 1
            assert os.sched_getaffinity(0) == os.sched_getaffinity(other.native_id) == set(cores)
        assert os.sched_getaffinity(0) == os.sched_getaffinity(other.native_id) == before
    finally:
        stop.set()
        other.join()


@linux
def test_pinning_ends_when_the_body_raises() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), Cpu(Options()).pinned(1):
        raise KeyError
    assert os.sched_getaffinity(0) == before


@linux
@pytest.mark.parametrize("threads", [0, 10_000])
def test_pinning_is_refused_when_there_are_not_so_many_cores(threads: int) -> None:
    with pytest.raises(UsageError, match=f"threads must be 1 to .* got {threads}"), Cpu(Options()).pinned(threads):
        pass
