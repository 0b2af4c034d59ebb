"""Peak memory of calibration: the same for few samples and for many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path

import torch

from edgekd import quantize
from edgekd.catalog import CATALOGS

torch.set_num_threads(1)
family = CATALOGS["models"].load("resnet").member
network = family(family.Options(depth=20)).build(10, (3, 32, 32)).eval()
calibrator = CATALOGS["calibration"].load("entropy").member
numerics = CATALOGS["targets"].load("onnxruntime_x86").member().numerics
generator = torch.Generator().manual_seed(0)
example = torch.randn(16, 3, 32, 32, generator=generator)
graph = quantize.prepare(
    network, example, numerics=numerics, calibrator=calibrator(calibrator.Options()), reduce_range=False
)
quantize.calibrate(graph, [example])  # what the first run allocates is there for any number of samples
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
count = int(sys.argv[1])
seen = quantize.calibrate(graph, (torch.randn(16, 3, 32, 32, generator=generator) for _ in range(count // 16)))
status = Path("/proc/self/status").read_text()
print(seen, next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def peak_mib(samples: int) -> float:
    """Largest resident memory of a process while it calibrates, in MiB."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(samples)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    seen, kibibytes = result.stdout.split()[-2:]
    assert int(seen) == samples
    return int(kibibytes) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which can reset a peak")
def test_peak_memory_is_flat_from_16_to_512_samples() -> None:
    few, many = peak_mib(16), peak_mib(512)
    # activations of 512 samples would be 0.9 GiB
    assert many <= 1.2 * few
