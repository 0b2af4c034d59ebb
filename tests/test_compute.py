from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from edgekd._compute import faster_layout, keep_freed_memory

BROKEN = """
import gc, torch
layer = torch.nn.Conv2d(4, 8, 1, 2, bias=False).to(memory_format=torch.channels_last)
for side in (7, 8, 14, 16):
    for batch in (2, 4, 8, 32):
        x = torch.randn(batch, 4, side, side).to(memory_format=torch.channels_last).requires_grad_()
        for _ in range(3):
            layer(x).sum().backward()
            gc.collect()
"""


def network(channels: int, stride: int, *, kernel: int = 1, groups: int = 1) -> nn.Module:
    layer = nn.Conv2d(channels, 8, kernel, stride, padding=kernel // 2, groups=groups)
    return nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("layer", "layout"),
    [
        ({"channels": 4, "stride": 2}, torch.contiguous_format),
        ({"channels": 7, "stride": 2}, torch.contiguous_format),
        ({"channels": 8, "stride": 2}, torch.channels_last),
        ({"channels": 4, "stride": 1}, torch.channels_last),
        ({"channels": 4, "stride": 2, "groups": 2}, torch.channels_last),
        ({"channels": 4, "stride": 2, "kernel": 3}, torch.channels_last),
    ],
)
def test_layer_that_corrupts_memory_keeps_the_default_layout(
    layer: dict[str, int], layout: torch.memory_format
) -> None:
    assert faster_layout([network(**layer)], torch.zeros(2, layer["channels"], 8, 8)) is layout


def test_graph_with_such_a_weight_keeps_the_default_layout() -> None:
    example = torch.zeros(2, 4, 8, 8)
    for channels, layout in ((4, torch.contiguous_format), (16, torch.channels_last)):
        example = torch.zeros(2, channels, 8, 8)
        graph = torch.export.export(network(channels, 2), (example,)).module()
        assert faster_layout([graph], example) is layout


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the check of the heap is glibc's")
def test_torch_still_corrupts_memory_in_that_layer() -> None:
    """When this fails, torch is mended, and `_overruns` can go (for versions from that one on)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_CHECK_": "3"}
    done = subprocess.run([sys.executable, "-c", BROKEN], env=environment, capture_output=True, check=False)
    assert done.returncode < 0, "torch is sound now: see edgekd/_compute.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    import resource

    keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(4 << 20)  # 16 MiB, given back at once
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 4096, "20 times 4096 pages if each time they came from the system"
