"""The counted networks behind the profiles' errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "devices"
COUNTS = json.loads((FOLDER / "networks.json").read_text(encoding="utf-8"))

# multiply-accumulates as their authors publish them, in millions
PUBLISHED = {
    "mobilenet_v1": 569, "mobilenet_v2": 300, "mobilenet_v3_large": 219, "mobilenet_v3_small": 56, "resnet18": 1814,
    "resnet50": 4089, "wide_resnet50_2": 11400, "googlenet": 1500, "inception_v3": 5713, "inception_v4": 12300,
    "inception_resnet_v2": 13200, "efficientnet_lite0": 407, "efficientnet_lite1": 631, "efficientnet_lite2": 899,
    "efficientnet_lite3": 1440, "efficientnet_lite4": 2640, "yolov8n": 4350, "yolov8s": 14300, "yolov8m": 39450,
}  # fmt: skip


def test_counts_agree_with_what_the_authors_publish() -> None:
    assert set(COUNTS) == set(PUBLISHED)
    for name, one in COUNTS.items():
        # the Lites are published 4 to 6 % higher: their authors count more than products
        assert one["macs"] / 1e6 == pytest.approx(PUBLISHED[name], rel=0.06), name
        assert sum(row[1] for row in one["operators"]) == one["macs"], name


def test_parameters_of_a_network_are_the_weights_that_it_reads() -> None:
    weights = {name: sum(row[3] for row in one["operators"]) for name, one in COUNTS.items()}
    assert weights["mobilenet_v2"] == pytest.approx(3.5e6, rel=0.02)
    assert weights["resnet50"] == pytest.approx(25.5e6, rel=0.01)
    assert weights["yolov8n"] == pytest.approx(3.15e6, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2", "yolov8n"])
def test_a_network_built_again_gives_the_committed_counts(name: str) -> None:
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        import _counted

        assert _counted.compact(_counted.built(name)) == COUNTS[name]["operators"]
    finally:
        sys.path[:] = before
